// SPDX-License-Identifier: Apache-2.0
// Blocks of many tokens: multiply-adds set the pace. Codes and columns of B become floats once for
// all tokens of a block, and what the inner loops read most lies in the first-level cache.
#pragma once
#include <string.h>

#include "few.inl.h"
#include "finish.inl.h"
#include "pairs.inl.h"
#include "panel.inl.h"

namespace {

// into[M][kWide] (+)= c[M][0:depth] rows[0:depth][kWide]
template <int M>
inline void rank_rows(const float* c, std::int64_t c_row, const float* rows, std::int64_t row,
                      int depth, bool first, float* into) {
  F acc[M][kColumns];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      acc[m][n] = first ? zero() : load(into + m * kWide + n * kW);
    }
  }
  for (int r = 0; r < depth; ++r, rows += row) {
    F w[kColumns];
    for (int n = 0; n < kColumns; ++n) w[n] = load(rows + n * kW);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const F x = set1(c[m * c_row + r]);
#pragma GCC unroll 4
      for (int n = 0; n < kColumns; ++n) acc[m][n] = fma(x, w[n], acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < kColumns; ++n) store(into + m * kWide + n * kW, acc[m][n]);
  }
}

// A block of rank rows that lie side by side (B as it was trained), n columns in whole vectors.
template <class P>
inline void turn_columns(const P* base, std::int64_t b_col, int n, float* to, std::int64_t room) {
  for (int i = 0; i < n; i += kW) {
    F turned[kW];
    for (int j = 0; j < kW; ++j) turned[j] = load(base + (i + j) * b_col);
    transpose(turned);
    for (int j = 0; j < kW; ++j) store(to + j * room + i, turned[j]);
  }
}

// Columns [at, at + n) of rank rows [first, first + depth), `room` floats a row.
template <class P>
inline void widen_columns(const LoraArgs& a, const LoraBlock& b, int first, int depth,
                          std::int64_t at, int n, float* to, std::int64_t room) {
  for (int r = 0; r < depth; ++r) {
    const std::int64_t row = b.rank_rows[first + r];
    float* into = to + r * room;
    if constexpr (kCodes<P>) {
      widen_codes(b_row<P>(a, row), b_scales(a, row), a.b_group, at, n, into);
    } else {
      const P* base = b_row<P>(a, row) + at * a.b_col;
      const bool block = a.b_rank == 1 && r + kW <= depth && n % kW == 0 &&
                         b.rank_rows[first + r + kW - 1] - row == kW - 1 &&
                         row % a.b_ranks + kW <= a.b_ranks;
      if (a.b_col == 1) {
        widen(base, n, into);
      } else if (block) {
        turn_columns(base, a.b_col, n, into, room);
        r += kW - 1;
      } else {
        for (int i = 0; i < n; i += kW) {
          P lanes[kW] = {};
          for (int j = 0; j < kW && i + j < n; ++j) lanes[j] = base[(i + j) * a.b_col];
          store(into + i, load(lanes));
        }
      }
    }
  }
}

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

// Rank rows [r, r + deep) of the slice, widened, `strip` floats a row, for all tokens and columns
// [at, at + n). Behind the last rank row the sums go to y.
__attribute__((noinline)) void strip_columns(const LoraArgs& a, const LoraBlock& b, int start,
                                             int depth, int r, int deep, std::int64_t at, int n,
                                             const float* wide, int strip, float* acc) {
  const int all = b.starts[a.slices];
  const float* c = b.bridge + start + r;
  in_rows<kRows>(0, b.count, [&](int m, auto rows) {
    float* into = acc + (depth <= kDeep ? 0 : m * kWide);
    for (int i = 0; i < n; i += kWide) {
      // What is added to next: on the right, below, or at the top of the next strip.
      const bool right = i + kWide < n, below = m + rows < b.count;
      const int token = right ? m : below ? m + rows : 0;
      y_nearer<true>(a, b, token, rows, right ? at + i + kWide : below ? at : at + n);
      // Memory takes longer than a block: the tokens below, or the next strip of the first.
      y_nearer<false>(a, b, below ? m + rows : 0, rows, below ? at + i : at + n + i);
      rank_rows<rows>(c + m * all, all, wide + i, strip, deep, r == 0, into);
      if (r + deep < depth) continue;  // the sums wait for more rank rows
      finish(a, b, m, rows, at + i, n - i < kWide ? n - i : kWide, into, kWide);
    }
  });
}

// Columns [first, last) of the slice whose rank rows begin at `start`.
template <class P>
inline void expand_many(const LoraArgs& a, const LoraBlock& b, int start, int depth,
                        std::int64_t first, std::int64_t last, float* scratch) {
#ifdef HEADRACE_DOTS
  if constexpr (std::is_same_v<P, paired>) {
    return expand_pairs(a, b, start, depth, first, last, scratch);
  }
#endif
  const int fit = depth ? kStripWords / depth / kWide * kWide : kWide;
  const int strip = fit < kWide ? kWide : fit > kStripMost ? kStripMost : fit;
  float* acc = scratch;                 // [count][kWide]
  float* wide = acc + b.count * kWide;  // [kDeep][strip]
  for (std::int64_t at = first; at < last; at += strip) {
    const int n = static_cast<int>(last - at < strip ? last - at : strip);
    int deep = 0;
    for (int r = 0; r == 0 || r < depth; r += deep) {
      deep = depth - r < kDeep ? depth - r : kDeep;
      widen_columns<P>(a, b, start + r, deep, at, n, wide, strip);
      strip_columns(a, b, start, depth, r, deep, at, n, wide, strip, acc);
      if (depth == 0) break;
    }
  }
}

}  // namespace
