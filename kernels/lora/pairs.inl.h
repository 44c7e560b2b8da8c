// SPDX-License-Identifier: Apache-2.0
// The second half for many tokens in pairs of rank rows: what a token multiplies them by comes as
// two bf16. The sums are those of few.inl.h, in the same order.
#pragma once
#include <string.h>

#include "columns.inl.h"

#ifdef HEADRACE_DOTS

namespace {

// Both terms of `deep` numbers of the bridge for every token: pairs of the first, then, kDeep
// behind them, of the second.
inline void split_bridge(const float* c, std::int64_t c_row, int count, int deep, bf16* to) {
  for (int m = 0; m < count; ++m, c += c_row, to += 2 * kDeep) {
    for (int r = 0; r < deep; r += kW) {
      float some[kW] = {};
      memcpy(some, c + r, sizeof(float) * (deep - r < kW ? deep - r : kW));
      split(load(some), to + r, to + kDeep + r);
    }
  }
}

// to[deep / 2][kWide] = pairs of rank rows from r on, columns [at, at + n).
inline void pair_up(const LoraArgs& a, const LoraBlock& b, int r, int deep, std::int64_t at, int n,
                    float* to) {
  const std::int32_t* rows = b.rank_rows + r;
  for (int i = 0; i < deep; i += 2) {
    Pairs columns[kColumns];
    const bool both = i + 1 < deep;
    const bf16* even = b_row<paired>(a, rows[i]) + at * a.b_col;
    const bf16* odd = both ? b_row<paired>(a, rows[i + 1]) + at * a.b_col : nullptr;
    if (a.b_col == 1 && n == kWide && both) {
      pair_rows<kColumns>(even, odd, columns);
      unweave<kColumns>(columns);
    } else {
      bf16 lanes[kWide][2] = {};
      for (int j = 0; j < n; ++j) {
        lanes[j][0] = even[j * a.b_col];
        if (both) lanes[j][1] = odd[j * a.b_col];
      }
      for (int j = 0; j < kColumns; ++j) columns[j] = load_pairs(lanes[j * kW]);
    }
    for (int j = 0; j < kColumns; ++j) store_pairs(to + i / 2 * kWide + j * kW, columns[j]);
  }
}
// The same where rank rows lie side by side (B as it was trained), 16 of them at a time. Meanwhile
// every line of as many columns at `ahead` comes nearer.
inline void pair_up_beside(const bf16* base, std::int64_t apart, int deep, const bf16* ahead,
                           float* to) {
  for (int r = 0; r < deep; r += kW) {
    const int some = deep - r < kW ? deep - r : kW;
    for (int j = 0; j < kColumns; ++j) {
      for (int i = r / kW % 2; i < kW; i += 2) {
        nearer(reinterpret_cast<const char*>(ahead + (j * kW + i) * apart + r));
      }
      Pairs columns[kW / 2];
      pair_columns(base + j * kW * apart + r, apart, some, columns);
      for (int i = 0; i < (some + 1) / 2; ++i) {
        store_pairs(to + (r / 2 + i) * kWide + j * kW, columns[i]);
      }
    }
  }
}

// into[M][kWide] (+)= c[M][pairs] . rows[pairs][kWide], of which c holds two terms.
template <int M, bool First>
inline void rank_pairs(const bf16* c, const float* rows, int pairs, float* into) {
  F acc[M][kColumns];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) acc[m][n] = First ? zero() : load(into + m * kWide + n * kW);
  }
  for (int p = 0; p < pairs; ++p, rows += kWide, c += 2) {
    Pairs w[kColumns];
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) w[n] = load_pairs(rows + n * kW);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int t = 0; t < 2; ++t) {
        const Pairs x = set1_pair(c + (2 * m + t) * kDeep);
#pragma GCC unroll 4
        for (int n = 0; n < kColumns; ++n) acc[m][n] = dot(x, w[n], acc[m][n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) store(into + m * kWide + n * kW, acc[m][n]);
  }
}

// A strip of columns as pairs of rank rows, [strip / kWide][pairs][kWide], and what they are
// multiplied by.
struct Paired {
  const bf16* c;  // [count][2][kDeep]
  const float* wide;
  int pairs;

  template <int M>
  inline void add(int m, int i, bool first, float* into) const {
    const bf16* terms = c + m * 2 * kDeep;
    const float* rows = wide + i * pairs;
    if (first) return rank_pairs<M, true>(terms, rows, pairs, into);
    rank_pairs<M, false>(terms, rows, pairs, into);
  }
};

template <>
struct Strip<paired> {
  static int words(int depth) { return (depth + 1) / 2; }

  int ready = -1;

  // Rank rows [r, r + deep), columns [at, at + n) of up to `last`.
  Paired take(const LoraArgs& a, const LoraBlock& b, int r, int deep, std::int64_t at, int n,
              std::int64_t last, int, float* wide) {
    const int pairs = words(deep);
    bf16* terms = reinterpret_cast<bf16*>(wide + kStripWords);
    if (r != ready) split_bridge(b.bridge + r, b.starts[a.slices], b.count, deep, terms);
    ready = r;
    const std::int32_t* listed = b.rank_rows + r;
    const bool run = deep && a.b_rank == 1 && listed[deep - 1] - listed[0] == deep - 1 &&
                     listed[0] % a.b_ranks + deep <= a.b_ranks;
    float* to = wide;
    for (int i = 0; i < n; i += kWide, at += kWide, to += pairs * kWide) {
      if (run && n - i >= kWide) {
        const bf16* base = b_row<paired>(a, listed[0]) + at * a.b_col;
        const bf16* next = at + 2 * kWide <= last ? base + kWide * a.b_col : base;
        pair_up_beside(base, a.b_col, deep, next, to);
      } else {
        pair_up(a, b, r, deep, at, n - i < kWide ? n - i : kWide, to);
      }
    }
    return {terms, wide, pairs};
  }
};

}  // namespace

#endif
