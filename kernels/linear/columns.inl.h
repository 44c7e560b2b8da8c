// SPDX-License-Identifier: Apache-2.0
// Sixteen rows in the lanes of a vector, for depths so short that the ends of sums count. A vector
// holds one of the partial sums that `dots` has in its lanes, of sixteen rows and one output: these
// come one after another, in the order in which the tree of the sum wants them, and are added up
// by whole vectors. The bits are those of `dots`.
#pragma once
#include <type_traits>

#include "csrc/simd/part.h"
#include "lanes.inl.h"

#ifdef HEADRACE_COLUMNS

namespace {

// Partial sums as the tree of a sum adds them: neighbours, then neighbours of these.
constexpr int kLeaves[kW] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
constexpr int kTall = 3;    // vectors of rows of a block
constexpr int kBeside = 8;  // outputs of a block
constexpr int kLine = 16;   // outputs that are written together

template <int V>
struct Sums {
  F of[V * kBeside];
};

// V * 16 packed rows against a few outputs.
template <int V>
struct Columns {
  const float* x;
  const float* w[kBeside];
  std::int64_t depth;

  // Partial sums of the J-th leaf.
  template <int J>
  inline __attribute__((always_inline)) Sums<V> leaf() const {
    constexpr int lane = kLeaves[J];
    const std::int64_t steps = (depth + kW - 1) / kW;
    Sums<V> sums;
#pragma GCC unroll 32
    for (F& sum : sums.of) sum = zero();
    const float* from = x + J * steps * V * kW;
#pragma GCC unroll 1
    for (std::int64_t k = lane; k < depth; k += kW, from += V * kW) {
      F xs[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        xs[v] = load(from + v * kW);
        __asm__("" : "+v"(xs[v].v));  // read once, not by each product
      }
#pragma GCC unroll 16
      for (int n = 0; n < kBeside; ++n) {
        F y = set1(w[n][k]);
        __asm__("" : "+v"(y.v));
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums.of[n * V + v] = fma(xs[v], y, sums.of[n * V + v]);
      }
    }
    if (lane + (steps - 1) * kW >= depth) {  // `dots` adds a product of zeros
#pragma GCC unroll 32
      for (F& sum : sums.of) sum = add(sum, zero());
    }
    return sums;
  }

  // The sum of `Count` leaves from the J-th on.
  template <int J, int Count>
  inline __attribute__((always_inline)) Sums<V> tree() const {
    if constexpr (Count == 1) {
      return leaf<J>();
    } else {
      Sums<V> a = tree<J, Count / 2>();
      const Sums<V> b = tree<J + Count / 2, Count / 2>();
#pragma GCC unroll 32
      for (int i = 0; i < V * kBeside; ++i) a.of[i] = add(a.of[i], b.of[i]);
      return a;
    }
  }
};

// out[n][v] = sums of output n and rows v * 16 on.
template <int V>
__attribute__((noinline)) void column_sums(const Columns<V>& c, F* out) {
  const Sums<V> sums = c.template tree<0, kW>();
#pragma GCC unroll 32
  for (int i = 0; i < V * kBeside; ++i) out[i] = sums.of[i];
}

// out = the rows: for every leaf and step of it V vectors of sixteen rows.
template <int V, class X>
inline void pack_columns(const X* x, std::int64_t x_row, int rows, std::int64_t depth, float* out) {
  const std::int64_t steps = (depth + kW - 1) / kW;
  for (int v = 0; v < V; ++v) {
    for (std::int64_t i = 0; i < steps; ++i) {
      const int left = static_cast<int>(depth - i * kW < kW ? depth - i * kW : kW);
      F block[kW];
      for (int r = 0; r < kW; ++r) {
        const X* from = x + (v * kW + r) * x_row + i * kW;
        if (v * kW + r >= rows) {
          block[r] = zero();
        } else if (left == kW) {
          block[r] = load(from);
        } else {
          block[r] = load_part(from, left);
        }
      }
      transpose(block);
      for (int j = 0; j < kW; ++j) store(out + ((j * steps + i) * V + v) * kW, block[kLeaves[j]]);
    }
  }
}

// Rows of y from sums[16][V], of which `cols` outputs count, once the bias is added to them.
template <int V, class X>
inline void write_columns(const LinearArgs& a, const F* sums, const float* bias, int rows,
                          std::int64_t row, std::int64_t col, int cols) {
  X* y = static_cast<X*>(a.y) + row * a.outputs + col;
  for (int v = 0; v < V; ++v) {
    F block[kW];
    for (int n = 0; n < kW; ++n) block[n] = sums[n * V + v];
    transpose(block);
    const int here = rows - v * kW < kW ? rows - v * kW : kW;
    for (int r = 0; r < here; ++r, y += a.outputs) {
      const F sum = a.bias ? add(block[r], load(bias)) : block[r];
      if (cols == kW) {
        store(y, sum);
      } else {
        store_part(y, sum, cols);
      }
    }
  }
}

// Up to V * 16 rows against all outputs of a strip, whose weights are `apart` from one another.
template <int V, class X>
inline void column_rows(const LinearArgs& a, std::int64_t row, int rows, const float* weight,
                        std::int64_t apart, std::int64_t first, std::int64_t last, float* packed) {
  pack_columns<V>(static_cast<const X*>(a.x) + row * a.x_row, a.x_row, rows, a.depth, packed);
  Columns<V> c{packed, {}, a.depth};
  for (std::int64_t n = first; n < last; n += kLine) {
    const int cols = static_cast<int>(last - n < kLine ? last - n : kLine);
    F sums[kLine * V];
    float bias[kLine] = {};
    for (int i = 0; i < kLine; ++i) {
      const std::int64_t of = i < cols ? i : cols - 1;
      c.w[i % kBeside] = weight + (n - first + of) * apart;
      if (a.bias) bias[i] = element(a.bias, n + of, a.w_dtype);
      if (i % kBeside == kBeside - 1) column_sums(c, sums + (i + 1 - kBeside) * V);
    }
    write_columns<V, X>(a, sums, bias, rows, row, n, cols);
  }
}

// scratch: kTall * 16 rows of the depth, then the strip's weights where they have to be widened.
template <class X, class W>
inline void blocks_of_columns(const LinearArgs& a, std::int64_t begin, std::int64_t end,
                              std::int64_t first, std::int64_t last, float* scratch) {
  const std::int64_t padded = (a.depth + kW - 1) / kW * kW;
  const W* rows_of_weights = static_cast<const W*>(a.weight) + first * a.w_row;
  const float* weight;
  std::int64_t apart = a.w_row;
  if constexpr (std::is_same_v<W, float>) {
    weight = rows_of_weights;
  } else {
    float* wide = scratch + kTall * kW * padded;
    for (std::int64_t n = 0; n < last - first; ++n) {
      pack_rows<Lanes<W, float>>(rows_of_weights + n * a.w_row, a.w_row, 1, a.depth,
                                 wide + n * padded);
    }
    weight = wide, apart = padded;
  }
  std::int64_t t = begin;
  const auto some = [&](auto V, std::int64_t rows) {
    column_rows<V.value, X>(a, t, static_cast<int>(rows < end - t ? rows : end - t), weight, apart,
                            first, last, scratch);
    t += rows;
  };
  while (t < end) {
    const std::int64_t vectors = (end - t + kW - 1) / kW;
    if (vectors == 3 || vectors > 4) {
      some(std::integral_constant<int, 3>{}, 3 * kW);
    } else if (vectors > 1) {
      some(std::integral_constant<int, 2>{}, 2 * kW);
    } else {
      some(std::integral_constant<int, 1>{}, kW);
    }
  }
}

}  // namespace

#endif
