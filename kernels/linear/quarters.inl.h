// SPDX-License-Identifier: Apache-2.0
// Many rows of a short depth. A vector holds a quarter of the lanes that `dots` has, of four
// outputs: sums of a quarter take additions of whole vectors only, weights are packed by moving
// whole quarters, and sums of sixteen outputs end as a line of y. The bits are those of `dots`.
//
// A block of sixteen outputs is packed once for all rows and stays in the first-level cache while
// blocks of six rows pass.
#pragma once
#include "columns.inl.h"

#ifdef HEADRACE_COLUMNS

namespace {

using headrace::LinearQuarters;

constexpr int kQuarters = 4;
// Where a quarter comes in the order in which the tree of a sum wants them: 0, 2, 1, 3.
constexpr int kTurn[kQuarters] = {0, 2, 1, 3};
constexpr int kRows = LinearQuarters::kRows;
constexpr int kVectors = 4;  // of four outputs
constexpr int kSums = kRows * kVectors;

// Steps [begin, end) of a block of rows: by quarters, for each step four elements of every row.
template <class X>
__attribute__((flatten)) void pack_rows_by_quarters(const LinearArgs& a, const LinearQuarters& c,
                                                    std::int64_t block, std::int64_t begin,
                                                    std::int64_t end, float* packed) {
  float* out = packed + c.place(block);
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t row = block * kRows + r;
    const X* x = static_cast<const X*>(a.x) + (row < a.tokens ? row : a.tokens - 1) * a.x_row;
    for (std::int64_t i = begin; i < end; ++i) {
      alignas(64) float step[kW];
      store(step, step_of(x, i, a.depth));
      for (int q = 0; q < kQuarters; ++q) {
        float* to = out + ((kTurn[q] * c.steps + i) * kRows + r) * kQuarters;
        std::memcpy(to, step + q * kQuarters, kQuarters * sizeof(float));
      }
    }
  }
}

// Sixteen outputs, of which the last may repeat: by quarters, for each step four vectors. Vector v
// has outputs v, v + 4, v + 8 and v + 12, whose sums then come out in order.
template <class W>
__attribute__((flatten)) void pack_outputs_by_quarters(const LinearArgs& a, const LinearQuarters& c,
                                                       std::int64_t first, int cols, float* out) {
  for (int v = 0; v < kVectors; ++v) {
    const W* from[kQuarters];
    for (int j = 0; j < kQuarters; ++j) {
      const int n = v + kQuarters * j;
      from[j] = static_cast<const W*>(a.weight) + (first + (n < cols ? n : cols - 1)) * a.w_row;
    }
    for (std::int64_t i = 0; i < c.steps; ++i) {
      F rows[kQuarters];
      for (int j = 0; j < kQuarters; ++j) rows[j] = step_of(from[j], i, a.depth);
      transpose_lanes(rows);
      for (int q = 0; q < kQuarters; ++q) {
        store(out + ((kTurn[q] * c.steps + i) * kVectors + v) * kW, rows[q]);
      }
    }
  }
}

// Up to six rows against sixteen outputs. near: sums of quarters that wait for others.
template <class X>
__attribute__((noinline)) void quarter_sums(const float* x, const float* w, std::int64_t steps,
                                            float* near, X* y, std::int64_t y_row, int rows,
                                            const float* bias, int cols) {
  for (int turn = 0;; ++turn) {
    F sums[kSums];
#pragma GCC unroll 32
    for (F& sum : sums) clear(sum);
#pragma GCC unroll 1
    for (const float* end = w + steps * kVectors * kW; w < end;
         w += kVectors * kW, x += kRows * kQuarters) {
      F ws[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        ws[v] = load(w + v * kW);
        __asm__("" : "+v"(ws[v].v));  // read once, not by each product
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F xs = spread(x + r * kQuarters);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums[r * kVectors + v] = fma(xs, ws[v], sums[r * kVectors + v]);
        }
      }
    }
    const int level = __builtin_ctz(~turn);  // this turn ends the sums of as many levels
    for (int i = 0; i < level; ++i) {
      const float* before = near + i * kSums * kW;
#pragma GCC unroll 32
      for (int k = 0; k < kSums; ++k) sums[k] = add(load(before + k * kW), sums[k]);
    }
    if (turn == kQuarters - 1) {
      F lines[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F* of = sums + r * kVectors;
        lines[r] = sum_lanes(of);
      }
      write_lines<kRows>(y, y_row, lines, rows, bias, cols);
      return;
    }
    float* out = near + level * kSums * kW;
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) store(out + i * kW, sums[i]);
  }
}

// scratch: the weights of sixteen outputs, their bias, sums that wait.
template <class X, class W>
inline void blocks_by_quarters(const LinearArgs& a, const float* packed, std::int64_t begin,
                               std::int64_t end, std::int64_t first, std::int64_t last,
                               float* scratch) {
  const LinearQuarters c(a);
  float* bias = scratch + c.steps * kW * kW;
  float* near = bias + kW;
  for (std::int64_t n = first; n < last; n += kW) {
    const int cols = static_cast<int>(last - n < kW ? last - n : kW);
    pack_outputs_by_quarters<W>(a, c, n, cols, scratch);
    if (a.bias) take_bias(a, n, cols, bias);
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t row = b * kRows, left = a.tokens - row;
      quarter_sums(packed + c.place(b), scratch, c.steps, near,
                   static_cast<X*>(a.y) + row * a.outputs + n, a.outputs,
                   static_cast<int>(left < kRows ? left : kRows), a.bias ? bias : nullptr, cols);
    }
  }
}

void quarters(const LinearArgs& a, const float* packed, std::int64_t begin, std::int64_t end,
              std::int64_t first, std::int64_t last, float* scratch) {
  by_rows(a.x_dtype, [&](auto x) {
    by_type(a.w_dtype, [&](auto w) {
      blocks_by_quarters<decltype(x), decltype(w)>(a, packed, begin, end, first, last, scratch);
    });
  });
}

void pack_quarters(const LinearArgs& a, std::int64_t block, std::int64_t begin, std::int64_t end,
                   float* packed) {
  const LinearQuarters c(a);
  by_rows(a.x_dtype,
          [&](auto x) { pack_rows_by_quarters<decltype(x)>(a, c, block, begin, end, packed); });
}

}  // namespace

#endif
