// SPDX-License-Identifier: Apache-2.0
// Sixteen rows in the lanes of a vector, where there are many. A vector holds one of the partial
// sums that `dots` has in its lanes, a leaf of the tree of a sum, of sixteen rows and one output;
// leaves come in the order in which the tree wants them and are added up by whole vectors. The bits
// are those of `dots`.
//
// Rows are packed once for all outputs, weights once for all rows, both leaf by leaf. A chunk of a
// block of rows stays in the first-level cache while the weights of a strip of outputs pass.
#pragma once
#include <type_traits>

#include "csrc/simd/part.h"
#include "lanes.inl.h"

#ifdef HEADRACE_AVX512
#define HEADRACE_COLUMNS

namespace {

using headrace::LinearColumns;

// Partial sums as the tree of a sum adds them: neighbours, then neighbours of these.
constexpr int kLeaves[kW] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
constexpr int kLevels = 4;  // of additions above the leaves
constexpr int kTall = LinearColumns::kTall;
constexpr int kBeside = LinearColumns::kBeside;
constexpr int kBlock = LinearColumns::kBlock;

// Where sums of a block of rows and outputs wait, one for each level of the tree, to be added to
// those beside them. The lowest `own` levels are done with before the next outputs come.
struct Waiting {
  float *near, *far;
  std::int64_t apart;  // from a level to the next, of the far ones
  int own;
  float* at(int level) const {
    return level < own ? near + level * kBlock : far + (level - own) * apart;
  }
};

// What comes nearer meanwhile: a line a step.
struct Ahead {
  const char* line;
  std::int64_t step;
};

// Some steps of leaves [leaf, upto): all of them, or those of one leaf, whose first set its sums to
// zero and whose last end it.
template <int V>
__attribute__((noinline)) void column_sums(const float* x, const float* w, std::int64_t steps,
                                           int leaf, int upto, bool first, bool last,
                                           const Waiting& waiting, Ahead ahead) {
  for (; leaf < upto; ++leaf) {
    const int level = __builtin_ctz(~leaf);  // this leaf ends the sums of as many levels
    float* out = waiting.at(level);
    F sums[V * kBeside];
    if (first) {
#pragma GCC unroll 32
      for (F& sum : sums) sum = zero();
    } else {
#pragma GCC unroll 32
      for (int i = 0; i < V * kBeside; ++i) sums[i] = load(out + i * kW);
    }
    // Unrolled it would outgrow the cache of decoded instructions.
#pragma GCC unroll 1
    for (const float* end = w + steps * kBeside; w < end; w += kBeside, x += V * kW) {
      __builtin_prefetch(ahead.line, 0, 2);
      ahead.line += ahead.step;
      F xs[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        xs[v] = load(x + v * kW);
        __asm__("" : "+v"(xs[v].v));  // read once, not by each product
      }
#pragma GCC unroll 16
      for (int n = 0; n < kBeside; ++n) {
        F y = set1(w[n]);
        __asm__("" : "+v"(y.v));
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[n * V + v] = fma(xs[v], y, sums[n * V + v]);
      }
    }
    for (int i = 0; last && i < level; ++i) {
      const float* before = waiting.at(i);
#pragma GCC unroll 32
      for (int k = 0; k < V * kBeside; ++k) sums[k] = add(load(before + k * kW), sums[k]);
    }
#pragma GCC unroll 32
    for (int i = 0; i < V * kBeside; ++i) store(out + i * kW, sums[i]);
  }
}

// The i-th vector of a row, with zeros behind its end.
template <class T>
inline F step_of(const T* row, std::int64_t i, std::int64_t depth) {
  const std::int64_t left = depth - i * kW;
  if (left >= kW) return load(row + i * kW);
  return left > 0 ? load_part(row + i * kW, static_cast<int>(left)) : zero();
}

// Steps [begin, end) of a block of rows: for every leaf and step of it vectors of sixteen rows.
template <class X>
__attribute__((flatten)) void pack_rows_in_columns(const LinearArgs& a, const LinearColumns& c,
                                                   std::int64_t block, std::int64_t begin,
                                                   std::int64_t end, float* packed) {
  const int tall = c.tall(block);
  float* out = packed + c.place(block);
  for (int v = 0; v < tall; ++v) {
    const std::int64_t row = c.row(block) + v * kW;
    const X* x = static_cast<const X*>(a.x) + row * a.x_row;
    float* to = out + (begin * tall + v) * kW;
    for (std::int64_t i = begin; i < end; ++i, to += tall * kW) {
      F rows[kW];
      if (row + kW <= a.tokens && (i + 1) * kW <= a.depth) {
        for (int r = 0; r < kW; ++r) rows[r] = load(x + r * a.x_row + i * kW);
      } else {
        for (int r = 0; r < kW; ++r) {
          rows[r] = row + r < a.tokens ? step_of(x + r * a.x_row, i, a.depth) : zero();
        }
      }
      transpose(rows);
      for (int j = 0; j < kW; ++j) store(to + j * c.steps * tall * kW, rows[kLeaves[j]]);
    }
  }
}

// Weights of a strip: for every few leaves that are taken together and every eight outputs, the
// leaves one after another, for each step the eight. The last outputs may repeat.
template <class W>
__attribute__((flatten)) void pack_weights(const LinearArgs& a, const LinearColumns& c,
                                           std::int64_t first, std::int64_t last, float* out) {
  const std::int64_t groups = c.groups(last - first);
  for (std::int64_t g = 0; g < groups; ++g) {
    const W* rows[kBeside];
    for (int n = 0; n < kBeside; ++n) {
      const std::int64_t at = first + g * kBeside + n;
      rows[n] = static_cast<const W*>(a.weight) + (at < last ? at : last - 1) * a.w_row;
    }
    float* to[kW];
    for (int j = 0; j < kW; ++j) to[j] = out + c.weights_at(groups, g, j, 0);
    const std::int64_t next = g + 1 < groups ? kBeside * a.w_row : 0;
    std::int64_t i = 0;
    for (; (i + 2) * kW <= a.depth; i += 2) {
      F block[kW];
      for (int r = 0; r < kW; ++r) {
        const W* from = rows[r % kBeside] + (i + r / kBeside) * kW;
        __builtin_prefetch(from + next);
        block[r] = load(from);
      }
      transpose(block);
      for (int j = 0; j < kW; ++j) store(to[j] + i * kBeside, block[kLeaves[j]]);
    }
    for (; i < c.steps; ++i) {
      F block[kW] = {};
      for (int n = 0; n < kBeside; ++n) block[n] = step_of(rows[n], i, a.depth);
      transpose(block);
      for (int j = 0; j < kW; ++j) store_part(to[j] + i * kBeside, block[kLeaves[j]], kBeside);
    }
  }
}

// Rows of a block against a strip of outputs.
template <class X>
struct Strip {
  const LinearArgs& a;
  const LinearColumns& c;
  std::int64_t first, last;  // outputs
  const float *weight, *bias;
  std::int64_t row;
  const float* x;  // packed
  Waiting waiting;

  X* y(int r, std::int64_t g) const {
    return static_cast<X*>(a.y) + (row + r) * a.outputs + first + g * kBeside;
  }

  // Sums of V * 16 rows and of eight outputs or sixteen, up to those of group g, end as rows of y.
  template <int V>
  __attribute__((flatten, noinline)) void write(std::int64_t g, const float* sums, int rows) const {
    const std::int64_t left = last - first - g * kBeside;
    const int cols = static_cast<int>(left < kW ? left : kW);
    for (int v = 0; v < V; ++v) {
      F block[kW];
      for (int n = 0; n < kW; ++n) {
        const float* from = sums + n / kBeside * kBlock + (n % kBeside * V + v) * kW;
        block[n] = n < cols ? load(from) : zero();
      }
      transpose(block);
      for (int r = v * kW; r < rows && r < (v + 1) * kW; ++r) {
        const F sum = block[r - v * kW];
        const F y_row = a.bias ? add(sum, load(bias + g * kBeside)) : sum;
        if (cols == kW) {
          round_to(y(r, g), y_row);
        } else {
          X part[kW];
          round_to(part, y_row);
          std::memcpy(y(r, g), part, cols * sizeof(X));
        }
      }
    }
  }

  // Leaves [leaf, leaf + c.leaves) of eight outputs, or a chunk of one of them.
  template <int V>
  inline void chunk(int leaf, std::int64_t k, std::int64_t steps, bool ends) {
    const std::int64_t groups = c.groups(last - first);
    const int upto = leaf + c.leaves;
    const int rows = static_cast<int>(a.tokens - row < V * kW ? a.tokens - row : V * kW);
    const float* from = x + (leaf * c.steps + k) * V * kW;
    const std::int64_t bytes = steps * c.leaves * V * kW * sizeof(float);
    float* far = waiting.far;
    for (std::int64_t g = 0; g < groups; ++g) {
      if (ends) {  // lines of y come nearer
        const int half = g % 2 ? rows / 2 : 0;
        for (int r = half; r < (g % 2 ? rows : rows / 2); ++r) __builtin_prefetch(y(r, g), 1);
      }
      Waiting here = waiting;
      here.far = far + g * kBlock;
      const Ahead ahead{reinterpret_cast<const char*>(from) + bytes + bytes * g / groups,
                        V * kW * static_cast<std::int64_t>(sizeof(float)) / groups};
      column_sums<V>(from, weight + c.weights_at(groups, g, leaf, k), steps, leaf, upto, k == 0,
                     k + steps == c.steps, here, ahead);
      if (ends && (g % 2 || g + 1 == groups)) {
        here.far = far + g / 2 * 2 * kBlock;
        write<V>(g / 2 * 2, here.at(kLevels), rows);
      }
    }
  }

  template <int V>
  inline void leaves(int leaf, int upto) {
    for (; leaf < upto; leaf += c.leaves) {
      for (std::int64_t k = 0; k < c.steps; k += c.chunk) {
        const std::int64_t steps = c.steps - k < c.chunk ? c.steps - k : c.chunk;
        chunk<V>(leaf, k, steps, leaf + c.leaves == kW && k + steps == c.steps);
      }
    }
  }
};

// scratch: the weights of the strip, its bias, sums that wait.
template <class X, class W>
inline void blocks_of_columns(const LinearArgs& a, const float* packed, std::int64_t begin,
                              std::int64_t end, std::int64_t first, std::int64_t last,
                              float* scratch) {
  const LinearColumns c(a);
  const std::int64_t groups = c.groups(last - first), apart = groups * kBlock;
  float* bias = scratch + groups * kBeside * c.steps * kW;
  float* near = bias + (groups + 1) / 2 * kW;
  float* far = near + kLevels * kBlock;
  pack_weights<W>(a, c, first, last, scratch);
  for (std::int64_t n = first; a.bias && n < last; ++n) {
    bias[n - first] = element(a.bias, n, a.w_dtype);
  }
  const int own = __builtin_ctz(c.leaves), together = c.together(last - first);
  const std::int64_t most = c.most(last - first);
  for (std::int64_t some = begin; some < end; some += most) {
    for (int leaf = 0; leaf < kW; leaf += together) {
      for (std::int64_t b = some; b < some + most && b < end; ++b) {
        const Waiting waiting{near, far + (b - some) * (kLevels + 1) * apart, apart, own};
        Strip<X> strip{a, c, first, last, scratch, bias, c.row(b), packed + c.place(b), waiting};
        switch (c.tall(b)) {
          case 3:
            strip.template leaves<3>(leaf, leaf + together);
            break;
          case 2:
            strip.template leaves<2>(leaf, leaf + together);
            break;
          default:
            strip.template leaves<1>(leaf, leaf + together);
        }
      }
    }
  }
}

void columns(const LinearArgs& a, const float* packed, std::int64_t begin, std::int64_t end,
             std::int64_t first, std::int64_t last, float* scratch) {
  by_rows(a.x_dtype, [&](auto x) {
    by_type(a.w_dtype, [&](auto w) {
      blocks_of_columns<decltype(x), decltype(w)>(a, packed, begin, end, first, last, scratch);
    });
  });
}

void pack_columns(const LinearArgs& a, std::int64_t block, std::int64_t begin, std::int64_t end,
                  float* packed) {
  const LinearColumns c(a);
  by_rows(a.x_dtype,
          [&](auto x) { pack_rows_in_columns<decltype(x)>(a, c, block, begin, end, packed); });
}

}  // namespace

#endif
