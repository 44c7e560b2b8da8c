// SPDX-License-Identifier: Apache-2.0
// The products of a tile of int8 codes in whole numbers.
#pragma once
#include "pairs.inl.h"

#ifdef HEADRACE_DOTS

namespace {

// c[M][N * kW] = queries[M][depth] * codes[depth][N * kW] in whole numbers: a row of queries is
// `depth` int16 of it, then as many of what rounding lost, in units of 2^-15. N is 1 or 2.
template <int M, int N>
inline void block_codes(const std::int16_t* q, const std::int8_t* codes, std::int64_t ld, int depth,
                        float* c, const float* units, Upcoming ahead) {
  Whole high[M][N], low[M][N];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) high[m][n] = low[m][n] = no_whole();
  }
  for (int i = 0; i < depth; i += 2) {
    const std::int8_t* row = codes + i * ld;
    Pairs b[N];
    if constexpr (N == 2) {
      pair_codes(row, row + ld, b);
    } else {
      b[0] = pair_codes(row, row + ld);
    }
    ahead.call(i / 2);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Pairs x = set1_pair(q + m * 2 * depth + i), y = set1_pair(q + (m * 2 + 1) * depth + i);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        high[m][n] = dot16(x, b[n], high[m][n]);
        low[m][n] = dot16(y, b[n], low[m][n]);
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    F sum[N];
    for (int n = 0; n < N; ++n) {
      const F whole = fma(to_float(low[m][n]), set1(0x1p-15f), to_float(high[m][n]));
      sum[n] = mul(whole, set1(units[m]));
    }
    if constexpr (N == 2) unweave_eights(sum[0], sum[1]);
    for (int n = 0; n < N; ++n) store(c + m * kTile + n * kW, sum[n]);
  }
}

// o[M][N * kW] += weights[M][tokens] * codes[tokens][N * kW], N is 1 or even.
template <int M, int N>
inline void block_weighted(const std::int16_t* s, const std::int8_t* codes, std::int64_t ld,
                           int tokens, float* o, std::int64_t ldo, const float* units,
                           Upcoming ahead) {
  Whole acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = no_whole();
  }
  for (int i = 0; i < tokens; i += 2) {
    const std::int8_t* row = codes + i * ld;
    const std::int8_t* next = i + 1 < tokens ? row + ld : row;  // whose weight is 0
    Pairs b[N];
    if constexpr (N == 1) {
      b[0] = pair_codes(row, next);
    } else {
#pragma GCC unroll 2
      for (int n = 0; n < N; n += 2) pair_codes(row + n * kW, next + n * kW, b + n);
    }
    ahead.call(i / 2);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Pairs x = set1_pair(s + m * 2 * kTile + i);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = dot16(x, b[n], acc[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    F sum[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[n] = to_float(acc[m][n]);
    for (int n = 0; n + 1 < N; n += 2) unweave_eights(sum[n], sum[n + 1]);
    for (int n = 0; n < N; ++n) {
      float* to = o + m * ldo + n * kW;
      store(to, fma(sum[n], set1(units[m]), load(to)));
    }
  }
}

template <int M, int N>
inline void rows_codes(const std::int16_t* q, const std::int8_t* codes, std::int64_t ld, int depth,
                       float* c, int rows, const float* units, Upcoming ahead) {
  for (; rows >= M; rows -= M, q += 2 * M * depth, c += M * kTile, units += M, ahead.step = 0) {
    block_codes<M, N>(q, codes, ld, depth, c, units, ahead);
  }
  if constexpr (M > 1) {
    if (rows) rows_codes<M - 1, N>(q, codes, ld, depth, c, rows, units, ahead);
  }
}
template <int M, int N>
inline void rows_weighted(const std::int16_t* s, const std::int8_t* codes, std::int64_t ld,
                          int tokens, float* o, std::int64_t ldo, int rows, const float* units,
                          Upcoming ahead) {
  for (; rows >= M; rows -= M, s += 2 * M * kTile, o += M * ldo, units += M, ahead.step = 0) {
    block_weighted<M, N>(s, codes, ld, tokens, o, ldo, units, ahead);
  }
  if constexpr (M > 1) {
    if (rows) rows_weighted<M - 1, N>(s, codes, ld, tokens, o, ldo, rows, units, ahead);
  }
}

// Products of int8 codes in whole numbers, exact but for the rounding of queries to 31 bits and of
// a tile's weights to 16, each of the largest of its row. For results that are rounded to bf16.
struct Coded {
  static constexpr bool packs_pairs = false;
  // Turns a row into int16; `unit` is what one of them counts.
  static float whole(const float* row, int count, std::int16_t* to, std::int16_t* lost) {
    F top = zero(), odd = zero();
    for (int i = 0; i < count; i += kW) {
      const F x = load(row + i);
      top = max(top, max(x, sub(zero(), x)));
      odd = fma(x, zero(), odd);
    }
    const float most = hmax(top);
    const bool finite = hsum(odd) == 0.f;
    const F by = set1(most > 0x1p-100f && finite ? 32767.f / most : 0.f);
    for (int i = 0; i < count; i += kW) {
      const F x = mul(load(row + i), by), near = round(x);
      store_whole(near, to + i);
      if (lost) store_whole(mul(sub(x, near), set1(32768.f)), lost + i);
    }
    return finite ? most / 32767.f : __builtin_nanf("");
  }
  static void query(float* row, int dim, float* unit) {
    alignas(64) std::int16_t low[headrace::kMostDim];
    std::int16_t* high = reinterpret_cast<std::int16_t*>(row);
    *unit = whole(row, dim, high, low);
    std::memcpy(high + dim, low, dim * sizeof(*low));
  }
  static void raw_query(const void*, std::int64_t, int, float*) {}
  static void weights(float* row, int cols, float* unit) {
    std::int16_t* to = reinterpret_cast<std::int16_t*>(row);
    *unit = whole(row, cols, to, nullptr);
    to[cols] = 0;
  }
  static void logits(const float* q, const float* units, int dim, const std::int8_t* keys,
                     std::int64_t ld, float* s, int rows, int cols, float, bool, const void* next,
                     std::int64_t bytes) {
    Upcoming ahead(next, bytes, dim, (cols + 2 * kW - 1) / (2 * kW));
    const std::int16_t* a = reinterpret_cast<const std::int16_t*>(q);
    int n = 0;
    for (; n + 2 * kW <= cols; n += 2 * kW, ahead.next_block()) {
      rows_codes<4, 2>(a, keys + n, ld, dim, s + n, rows, units, ahead);
    }
    if (n < cols) rows_codes<4, 1>(a, keys + n, ld, dim, s + n, rows, units, ahead);
  }
  static void values(const float* s, const float* units, int column, const std::int8_t* v,
                     std::int64_t ld, int tokens, float* o, int rows, int dim, const void* next,
                     std::int64_t bytes) {
    Upcoming ahead(next, bytes, tokens, (dim + 4 * kW - 1) / (4 * kW));
    const std::int16_t* a = reinterpret_cast<const std::int16_t*>(s) + column;
    int n = 0;
    for (; n + 4 * kW <= dim; n += 4 * kW, ahead.next_block()) {
      rows_weighted<6, 4>(a, v + n, ld, tokens, o + n, dim, rows, units, ahead);
    }
    if (n + 2 * kW <= dim) {
      rows_weighted<6, 2>(a, v + n, ld, tokens, o + n, dim, rows, units, ahead);
      n += 2 * kW, ahead.step = 0;
    }
    if (n < dim) rows_weighted<6, 1>(a, v + n, ld, tokens, o + n, dim, rows, units, ahead);
  }
};

}  // namespace

#endif
