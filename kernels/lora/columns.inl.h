// SPDX-License-Identifier: Apache-2.0
// Strips of B for many tokens: codes and columns become floats once for all tokens of a block.
#pragma once
#include <string.h>

#include "few.inl.h"

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

// A strip of columns widened, `room` floats a rank row, and what they are multiplied by.
struct Widened {
  const float* c;
  std::int64_t c_row;
  const float* wide;
  int room, deep;

  template <int M>
  inline void add(int m, int i, bool first, float* into) const {
    rank_rows<M>(c + m * c_row, c_row, wide + i, room, deep, first, into);
  }
};

template <class P>
struct Strip {
  static int words(int depth) { return depth; }

  // Rank rows [r, r + deep), columns [at, at + n).
  Widened take(const LoraArgs& a, const LoraBlock& b, int r, int deep, std::int64_t at, int n,
               std::int64_t, int room, float* wide) {
    widen_columns<P>(a, b, r, deep, at, n, wide, room);
    return {b.bridge + r, b.starts[a.slices], wide, room, deep};
  }
};

}  // namespace
