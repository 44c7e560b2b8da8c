// SPDX-License-Identifier: Apache-2.0
// Blocks of many tokens: multiply-adds set the pace, and what the inner loops read most lies in the
// first-level cache.
#pragma once
#include "columns.inl.h"
#include "finish.inl.h"
#include "pairs.inl.h"
#include "panel.inl.h"

namespace {

// A block of columns of y comes nearer, of `rows` tokens from m on: to the first cache, or only to
// the second.
template <bool First>
inline void y_nearer(const LoraArgs& a, const LoraBlock& b, int m, int rows, std::int64_t column) {
  for (int j = m; j < m + rows && j < b.count; ++j) {
    const char* y = at_row(a.y, b.tokens[j] * a.y_row + column, a.x_dtype);
    for (int at = 0; at < kWide * headrace::dtype_size(a.x_dtype); at += 64) {
      __builtin_prefetch(y + at, 0, First ? 3 : 2);
    }
  }
}

// Some rank rows, the first of them or not, for all tokens and columns [at, at + n). Behind the
// last rank row the sums go to y.
template <class Ranks>
__attribute__((noinline)) void strip_columns(const LoraArgs& a, const LoraBlock& b,
                                             const Ranks& ranks, bool first, bool last, bool deep,
                                             std::int64_t at, int n, float* acc) {
  in_rows<kRows>(0, b.count, [&](int m, auto rows) {
    float* into = acc + (deep ? m * kWide : 0);
    for (int i = 0; i < n; i += kWide) {
      // What is added to next: on the right, below, or at the top of the next strip.
      const bool right = i + kWide < n, below = m + rows < b.count;
      const int token = right ? m : below ? m + rows : 0;
      y_nearer<true>(a, b, token, rows, right ? at + i + kWide : below ? at : at + n);
      // Memory takes longer than a block: the tokens below, or the next strip of the first.
      y_nearer<false>(a, b, below ? m + rows : 0, rows, below ? at + i : at + n + i);
      ranks.template add<rows>(m, i, first, into);
      if (last) finish(a, b, m, rows, at + i, n - i < kWide ? n - i : kWide, into, kWide);
    }
  });
}

// Columns [first, last) of the slice whose rank rows begin at `start`.
template <class P>
inline void expand_many(const LoraArgs& a, const LoraBlock& b, int start, int depth,
                        std::int64_t first, std::int64_t last, float* scratch) {
  const int fit = depth ? kStripWords / Strip<P>::words(depth) / kWide * kWide : kWide;
  const int strip = fit < kWide ? kWide : fit > kStripMost ? kStripMost : fit;
  float* acc = scratch;                 // [count][kWide]
  float* wide = acc + b.count * kWide;  // [words][strip]
  Strip<P> columns;
  for (std::int64_t at = first; at < last; at += strip) {
    const int n = static_cast<int>(last - at < strip ? last - at : strip);
    int deep = 0;
    for (int r = 0; r == 0 || r < depth; r += deep) {
      deep = depth - r < kDeep ? depth - r : kDeep;
      const auto ranks = columns.take(a, b, start + r, deep, at, n, last, strip, wide);
      strip_columns(a, b, ranks, r == 0, r + deep == depth, depth > kDeep, at, n, acc);
      if (depth == 0) break;
    }
  }
}

}  // namespace
