// SPDX-License-Identifier: Apache-2.0
// The second half for many tokens in pairs of rank rows: what a token multiplies them by comes as
// two bf16. The sums are those of few.inl.h, in the same order.
#pragma once
#include "codes.inl.h"
#include "few.inl.h"
#include "finish.inl.h"

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

// into[M][kWide] (+)= c[M][pairs] . rows[pairs][kWide]
template <int M>
inline void rank_pairs(const bf16* c, const float* rows, int pairs, bool first, float* into) {
  F acc[M][kColumns];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      acc[m][n] = first ? zero() : load(into + m * kWide + n * kW);
    }
  }
  for (int p = 0; p < pairs; ++p, rows += kWide) {
    Pairs w[kColumns];
    for (int n = 0; n < kColumns; ++n) w[n] = load_pairs(rows + n * kW);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int t = 0; t < 2; ++t) {
        const Pairs x = set1_pair(c + (2 * m + t) * kDeep + 2 * p);
#pragma GCC unroll 4
        for (int n = 0; n < kColumns; ++n) acc[m][n] = dot(x, w[n], acc[m][n]);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < kColumns; ++n) store(into + m * kWide + n * kW, acc[m][n]);
  }
}

// Columns [first, last) of the slice whose rank rows begin at `start`.
inline void expand_pairs(const LoraArgs& a, const LoraBlock& b, int start, int depth,
                         std::int64_t first, std::int64_t last, float* scratch) {
  float* acc = scratch;                                             // [count][kWide]
  float* wide = acc + b.count * kWide;                              // [kDeep / 2][kWide]
  bf16* terms = reinterpret_cast<bf16*>(wide + kDeep / 2 * kWide);  // [count][2][kDeep]
  const int all = b.starts[a.slices];
  int ready = -1;
  if (depth == 0) memset(acc, 0, sizeof(float) * b.count * kWide);
  for (std::int64_t at = first; at < last; at += kWide) {
    const int n = static_cast<int>(last - at < kWide ? last - at : kWide);
    for (int r = 0; r < depth; r += kDeep) {
      const int deep = depth - r < kDeep ? depth - r : kDeep;
      if (r != ready) split_bridge(b.bridge + start + r, all, b.count, deep, terms);
      ready = r;
      const std::int32_t* listed = b.rank_rows + start + r;
      const bool beside = a.b_rank == 1 && n == kWide && listed[deep - 1] - listed[0] == deep - 1 &&
                          listed[0] % a.b_ranks + deep <= a.b_ranks;
      if (beside) {
        const bf16* base = b_row<paired>(a, listed[0]) + at * a.b_col;
        pair_up_beside(base, a.b_col, deep, at + 2 * kWide <= last ? base + kWide * a.b_col : base,
                       wide);
      } else {
        pair_up(a, b, start + r, deep, at, n, wide);
      }
      in_rows<kRows>(0, b.count, [&](int m, auto rows) {
        for (int i = m; i < m + rows && at + kWide < last; ++i) {
          const char* y = at_row(a.y, b.tokens[i] * a.y_row + at + kWide, a.x_dtype);
          for (int line = 0; line < 2; ++line) nearer(y + 64 * line);
        }
        rank_pairs<decltype(rows)::value>(terms + m * 2 * kDeep, wide, (deep + 1) / 2, r == 0,
                                          acc + m * kWide);
      });
    }
    finish(a, b, 0, b.count, at, n, acc, kWide);
  }
}

}  // namespace

#endif
