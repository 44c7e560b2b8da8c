// SPDX-License-Identifier: Apache-2.0
// The two products of a tile of keys, queries by keys and weights by values, as fp32 multiply-adds
// of widened values (Widened) or as dot products of bf16 pairs (Paired).
#pragma once
#include "tile.inl.h"

namespace {

// out[dim][kTile] = the transpose of `tokens` rows of k; columns up to the next vector are zero.
template <class T>
inline void pack_keys(const T* k, std::int64_t stride, int tokens, int dim, float* out) {
  for (int t = 0; t < tokens; t += kW) {
    const int full = tokens - t < kW ? tokens - t : kW;
    for (int d = 0; d < dim; d += kW) {
      F block[kW];
      for (int i = 0; i < full; ++i) block[i] = load(k + (t + i) * stride + d);
      for (int i = full; i < kW; ++i) block[i] = zero();
      transpose(block);
      for (int i = 0; i < kW; ++i) store(out + (d + i) * kTile + t, block[i]);
    }
  }
}

// Rows of queries and weights are fp32. (Others may keep a unit of each row, of what it counts in.)
struct Widened {
  static constexpr bool packs_pairs = false;
  static void query(float*, int, float*) {}
  static void raw_query(const void*, std::int64_t, int, float*) {}
  static void weights(float*, int, float*) {}
  // s[rows][cols] = queries * keys[dim][ld]
  template <class T>
  static void logits(const float* q, const float*, int dim, const T* keys, std::int64_t ld,
                     float* s, int rows, int cols, float, bool, const void* next,
                     std::int64_t bytes) {
    product<false>(q, dim, keys, ld, dim, s, kTile, rows, cols, next, bytes);
  }
  template <class T>
  static void pack(const T* k, std::int64_t stride, int tokens, int dim, float* out) {
    pack_keys(k, stride, tokens, dim, out);
  }
  static void packed_logits(const float* q, int dim, const float* packed, float* s, int rows,
                            int cols, float, const void* next, std::int64_t bytes) {
    product<false>(q, dim, packed, kTile, dim, s, kTile, rows, cols, next, bytes);
  }
  // o[rows][dim] += weights[:, column:column + tokens] * values[tokens][ld]
  template <class T>
  static void values(const float* s, const float*, int column, const T* v, std::int64_t ld,
                     int tokens, float* o, int rows, int dim, const void* next,
                     std::int64_t bytes) {
    product<true>(s + column, kTile, v, ld, tokens, o, dim, rows, dim, next, bytes);
  }
};

#ifdef HEADRACE_DOTS

// What to pull towards the cache while a product runs: each of its blocks of columns calls for an
// equal part, spread over its pairs. Memory that idles for half a product costs more than the
// product.
struct Upcoming {
  const char* at;
  std::int64_t step, part;  // bytes of a pair, and of a block

  Upcoming(const void* next, std::int64_t bytes, int depth, int blocks)
      : at(static_cast<const char*>(next)), step(0), part(0) {
    if (!next) return;
    step = bytes / (blocks * ((depth + 1) / 2)) / 64 * 64;
    part = step * ((depth + 1) / 2);
  }
  void call(int pair) const {
    for (std::int64_t line = 0; line < step; line += 64)
      __builtin_prefetch(at + pair * step + line);
  }
  void next_block() { at += part; }
};

template <int N>
struct Width {
  static constexpr int value = N;
};

// Rows [begin, end) of bf16, begin 0 or 1, paired up along the depth as they are read. A row
// without a partner comes twice; what multiplies the partner is 0.
struct RowPairs {
  const bf16* at;
  std::int64_t ld;
  int begin, end;
  static constexpr bool woven = true;
  template <int N>
  void read(int pair, Pairs* out) const {
    const int even = 2 * pair < begin ? begin : 2 * pair;
    const int odd = 2 * pair + 1 < end ? 2 * pair + 1 : end - 1;
    pair_rows<N>(at + even * ld, at + odd * ld, out);
  }
  RowPairs columns(int n) const { return {at + n, ld, begin, end}; }
};
// Pairs that lie as they are multiplied: [depth / 2][kTile].
struct PackedPairs {
  const float* at;
  static constexpr bool woven = false;
  template <int N>
  void read(int pair, Pairs* out) const {
    for (int n = 0; n < N; ++n) out[n] = load_pairs(at + pair * kTile + n * kW);
  }
  PackedPairs columns(int n) const { return {at + n}; }
};

// c[M][N * kW] (+)= a[M][depth] * b[depth][N * kW], times `scale` where it does not accumulate.
// `low` elements behind a row of a lies what its rounding lost, when that counts (Terms = 2).
template <int M, int N, bool Accumulate, int Terms, class Source>
inline void block_dots(const bf16* a, std::int64_t lda, std::int64_t low, const Source& b,
                       int depth, float* c, std::int64_t ldc, float scale, Upcoming ahead) {
  F acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = Accumulate ? load(c + m * ldc + n * kW) : zero();
    if (Accumulate && Source::woven) weave<N>(acc[m]);
  }
  for (int i = 0; i < (depth + 1) / 2; ++i) {
    Pairs row[N];
    b.template read<N>(i, row);
    ahead.call(i);
    // Left to itself the compiler keeps the sums in memory.
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int term = 0; term < Terms; ++term) {
        const Pairs x = set1_pair(a + m * lda + term * low + 2 * i);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[m][n] = dot(x, row[n], acc[m][n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    if (Source::woven) unweave<N>(acc[m]);
    for (int n = 0; n < N; ++n) {
      store(c + m * ldc + n * kW, Accumulate ? acc[m][n] : mul(acc[m][n], set1(scale)));
    }
  }
}

template <int M, int N, bool Accumulate, int Terms, class Source>
inline void row_dots(const bf16* a, std::int64_t lda, std::int64_t low, const Source& b, int depth,
                     float* c, std::int64_t ldc, int rows, float scale, Upcoming ahead) {
  for (; rows >= M; rows -= M, a += M * lda, c += M * ldc, ahead.step = 0) {
    block_dots<M, N, Accumulate, Terms>(a, lda, low, b, depth, c, ldc, scale, ahead);
  }
  if constexpr (M > 1) {
    if (rows)
      row_dots<M - 1, N, Accumulate, Terms>(a, lda, low, b, depth, c, ldc, rows, scale, ahead);
  }
}

template <bool Accumulate, int Terms, class Source>
inline void dots(const bf16* a, std::int64_t lda, std::int64_t low, const Source& b, int depth,
                 float* c, std::int64_t ldc, int rows, int cols, float scale, const void* next,
                 std::int64_t bytes) {
  Upcoming ahead(next, bytes, depth, (cols + 4 * kW - 1) / (4 * kW));
  const auto some = [&](auto width, int n) {
    row_dots<kRows, decltype(width)::value, Accumulate, Terms>(a, lda, low, b.columns(n), depth,
                                                               c + n, ldc, rows, scale, ahead);
    ahead.next_block();
  };
  int n = 0;
  for (; n + 4 * kW <= cols; n += 4 * kW) some(Width<4>{}, n);
  if (n + 2 * kW <= cols) some(Width<2>{}, n), n += 2 * kW;
  if (n + kW <= cols) some(Width<1>{}, n);
}

// Rows of queries hold dim bf16 and, unless they are exact, dim more of what rounding lost; rows of
// weights are rounded to bf16, which is as much as the result will be.
struct Paired {
  static constexpr bool packs_pairs = true;
  static void query(float* row, int dim, float*) {
    alignas(64) bf16 low[headrace::kMostDim];
    bf16* high = reinterpret_cast<bf16*>(row);
    for (int d = 0; d < dim; d += kW) split(load(row + d), high + d, low + d);
    std::memcpy(high + dim, low, dim * sizeof(bf16));
  }
  static void raw_query(const void* q, std::int64_t at, int dim, float* to) {
    std::memcpy(to, static_cast<const bf16*>(q) + at, dim * sizeof(bf16));
  }
  static void weights(float* row, int cols, float*) {
    bf16* to = reinterpret_cast<bf16*>(row);
    for (int j = 0; j < cols; j += kW) narrow(load(row + j), to + j);
    to[cols] = {0};
  }
  static void logits(const float* q, const float*, int dim, const bf16* keys, std::int64_t ld,
                     float* s, int rows, int cols, float scale, bool exact, const void* next,
                     std::int64_t bytes) {
    const bf16* a = reinterpret_cast<const bf16*>(q);
    const RowPairs b{keys, ld, 0, dim};
    if (exact) {
      dots<false, 1>(a, 2 * dim, 0, b, dim, s, kTile, rows, cols, scale, next, bytes);
    } else {
      dots<false, 2>(a, 2 * dim, dim, b, dim, s, kTile, rows, cols, scale, next, bytes);
    }
  }
  // out[dim / 2][kTile] = pairs of the transpose; columns up to the next vector are zero.
  static void pack(const bf16* k, std::int64_t stride, int tokens, int dim, float* out) {
    for (int t = 0; t < tokens; t += kW) {
      for (int d = 0; d < dim / 2; d += kW) {
        const int pairs = dim / 2 - d < kW ? dim / 2 - d : kW;
        F block[kW];
        for (int i = 0; i < kW; ++i) {
          block[i] = t + i < tokens ? load_first(k + (t + i) * stride + 2 * d, pairs) : zero();
        }
        transpose(block);
        for (int i = 0; i < pairs; ++i) store(out + (d + i) * kTile + t, block[i]);
      }
    }
  }
  static void packed_logits(const float* q, int dim, const float* packed, float* s, int rows,
                            int cols, float scale, const void* next, std::int64_t bytes) {
    dots<false, 1>(reinterpret_cast<const bf16*>(q), 2 * dim, 0, PackedPairs{packed}, dim, s, kTile,
                   rows, cols, scale, next, bytes);
  }
  static void values(const float* s, const float*, int column, const bf16* v, std::int64_t ld,
                     int tokens, float* o, int rows, int dim, const void* next,
                     std::int64_t bytes) {
    // Pairs are those of even columns, so that sums do not know where a block begins.
    const int begin = column % 2, end = begin + tokens;
    dots<true, 1>(reinterpret_cast<const bf16*>(s) + column - begin, 2 * kTile, 0,
                  RowPairs{v - begin * ld, ld, begin, end}, end, o, dim, rows, dim, 1.f, next,
                  bytes);
  }
};

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

#endif

// Adds a tile's weighted values to the rows, `group` of them per position. v starts at the key of
// `column`. A row multiplies the values that other rows of the block see by weight 0, which is
// nothing unless they are NaN or infinite: then `ranges` holds each position's own keys [lo, hi)
// from there, and only those are multiplied.
template <class P, class T>
inline void add_values(const float* s, const float* units, int column, const T* v,
                       std::int64_t v_row, int tokens, const Rows& st, int group, const int* ranges,
                       const void* next = nullptr, std::int64_t bytes = 0) {
  if (!ranges) {
    return P::values(s, units, column, v, v_row, tokens, st.o, st.rows, st.dim, next, bytes);
  }
  for (int i = 0; i * group < st.rows; ++i) {
    const int lo = ranges[2 * i], hi = ranges[2 * i + 1];
    if (lo >= hi) continue;
    P::values(s + i * group * kTile, units + i * group, column + lo, v + lo * v_row, v_row, hi - lo,
              st.o + static_cast<std::int64_t>(i) * group * st.dim, group, st.dim, nullptr, 0);
  }
}

}  // namespace
