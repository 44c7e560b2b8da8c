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

// Rows of queries and weights are fp32.
struct Widened {
  static constexpr bool packs_pairs = false;
  static void query(float*, int) {}
  static void raw_query(const void*, std::int64_t, int, float*) {}
  static void weights(float*, int) {}
  // s[rows][cols] = queries * keys[dim][ld]
  template <class T>
  static void logits(const float* q, int dim, const T* keys, std::int64_t ld, float* s, int rows,
                     int cols, float, bool, const void* next, std::int64_t bytes) {
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
  static void values(const float* s, int column, const T* v, std::int64_t ld, int tokens, float* o,
                     int rows, int dim, const void* next, std::int64_t bytes) {
    product<true>(s + column, kTile, v, ld, tokens, o, dim, rows, dim, next, bytes);
  }
};

#ifdef HEADRACE_DOTS

template <int N>
struct Width {
  static constexpr int value = N;
};

// Rows of bf16, paired up along the depth as they are read. Where their number is odd the last one
// comes twice, and finds a weight of 0.
struct RowPairs {
  const bf16* at;
  std::int64_t ld;
  int rows;
  static constexpr bool woven = true;
  template <int N>
  void read(int pair, Pairs* out) const {
    const bf16* row = at + 2 * pair * ld;
    pair_rows<N>(row, 2 * pair + 1 < rows ? row + ld : row, out);
  }
  RowPairs columns(int n) const { return {at + n, ld, rows}; }
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
                       int depth, float* c, std::int64_t ldc, float scale, Ahead ahead) {
  F acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = Accumulate ? load(c + m * ldc + n * kW) : zero();
    if (Accumulate && Source::woven) weave<N>(acc[m]);
  }
  for (int i = 0; i < (depth + 1) / 2; ++i) {
    Pairs row[N];
    b.template read<N>(i, row);
    for (std::int64_t line = 0; line < 2 * ahead.step; line += 64) {
      __builtin_prefetch(ahead.at + 2 * i * ahead.step + line);
    }
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
                     float* c, std::int64_t ldc, int rows, float scale, Ahead ahead) {
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
  Ahead ahead{static_cast<const char*>(next), next ? bytes / depth / 64 * 64 : 0};
  const auto some = [&](auto width, int n) {
    row_dots<kRows, decltype(width)::value, Accumulate, Terms>(a, lda, low, b.columns(n), depth,
                                                               c + n, ldc, rows, scale, ahead);
    ahead.step = 0;
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
  static void query(float* row, int dim) {
    alignas(64) bf16 low[headrace::kMostDim];
    bf16* high = reinterpret_cast<bf16*>(row);
    for (int d = 0; d < dim; d += kW) split(load(row + d), high + d, low + d);
    std::memcpy(high + dim, low, dim * sizeof(bf16));
  }
  static void raw_query(const void* q, std::int64_t at, int dim, float* to) {
    std::memcpy(to, static_cast<const bf16*>(q) + at, dim * sizeof(bf16));
  }
  static void weights(float* row, int cols) {
    bf16* to = reinterpret_cast<bf16*>(row);
    for (int j = 0; j < cols; j += kW) narrow(load(row + j), to + j);
    to[cols] = {0};
  }
  static void logits(const float* q, int dim, const bf16* keys, std::int64_t ld, float* s, int rows,
                     int cols, float scale, bool exact, const void* next, std::int64_t bytes) {
    const bf16* a = reinterpret_cast<const bf16*>(q);
    const RowPairs b{keys, ld, dim};
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
  static void values(const float* s, int column, const bf16* v, std::int64_t ld, int tokens,
                     float* o, int rows, int dim, const void* next, std::int64_t bytes) {
    dots<true, 1>(reinterpret_cast<const bf16*>(s) + column, 2 * kTile, 0, RowPairs{v, ld, tokens},
                  tokens, o, dim, rows, dim, 1.f, next, bytes);
  }
};

#endif

// Adds a tile's weighted values to the rows, `group` of them per position. v starts at the key of
// `column`. A row multiplies the values that other rows of the block see by weight 0, which is
// nothing unless they are NaN or infinite: then `ranges` holds each position's own keys [lo, hi)
// from there, and only those are multiplied.
template <class P, class T>
inline void add_values(const float* s, int column, const T* v, std::int64_t v_row, int tokens,
                       const Rows& st, int group, const int* ranges, const void* next = nullptr,
                       std::int64_t bytes = 0) {
  if (!ranges) {
    return P::values(s, column, v, v_row, tokens, st.o, st.rows, st.dim, next, bytes);
  }
  for (int i = 0; i * group < st.rows; ++i) {
    const int lo = ranges[2 * i], hi = ranges[2 * i + 1];
    if (lo >= hi) continue;
    P::values(s + i * group * kTile, column + lo, v + lo * v_row, v_row, hi - lo,
              st.o + static_cast<std::int64_t>(i) * group * st.dim, group, st.dim, nullptr, 0);
  }
}

}  // namespace
