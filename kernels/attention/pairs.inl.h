// SPDX-License-Identifier: Apache-2.0
// The products of a tile as dot products of bf16 pairs.
#pragma once
#include "tile.inl.h"

#ifdef HEADRACE_DOTS

namespace {

// What to pull towards the cache while a product runs: each of its blocks of columns calls for an
// equal part, spread over its pairs. Memory that idles for half a product costs more than the
// product. It comes to the second level: the first has fewer buffers for what is on its way.
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
      __builtin_prefetch(at + pair * step + line, 0, 2);
  }
  void next_block() { at += part; }
};

// Rows [begin, end) of bf16 or e4m3, begin 0 or 1, paired up along the depth as they are read. A
// row without a partner comes twice; what multiplies the partner is 0.
template <class T>
struct RowPairs {
  const T* at;
  std::int64_t ld;
  int begin, end;
  template <int N>
  __attribute__((always_inline)) void read(int pair, Pairs* out) const {
    const int even = 2 * pair < begin ? begin : 2 * pair;
    const int odd = 2 * pair + 1 < end ? 2 * pair + 1 : end - 1;
    pair_rows<N>(at + even * ld, at + odd * ld, out);
  }
  RowPairs columns(int n) const { return {at + n, ld, begin, end}; }
  // Sums of columns in order as the pairs come, and back.
  template <int N>
  static void weave(F* sums) {
    if constexpr (sizeof(T) == 2) return ::weave<N>(sums);
    if constexpr (N == 4) transpose_lanes(sums);
  }
  template <int N>
  static void unweave(F* sums) {
    if constexpr (sizeof(T) == 2) return ::unweave<N>(sums);
    weave<N>(sums);
  }
};
// Pairs that lie as they are multiplied: [depth / 2][kTile].
struct PackedPairs {
  const float* at;
  template <int N>
  __attribute__((always_inline)) void read(int pair, Pairs* out) const {
    for (int n = 0; n < N; ++n) out[n] = load_pairs(at + pair * kTile + n * kW);
  }
  PackedPairs columns(int n) const { return {at + n}; }
  template <int N>
  static void weave(F*) {}
  template <int N>
  static void unweave(F*) {}
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
    if (Accumulate) Source::template weave<N>(acc[m]);
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
    Source::template unweave<N>(acc[m]);
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
    row_dots<6, decltype(width)::value, Accumulate, Terms>(a, lda, low, b.columns(n), depth, c + n,
                                                           ldc, rows, scale, ahead);
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
  static constexpr bool packs_values = false;
  static void query(float* row, int dim, float*) {
    alignas(64) bf16 low[headrace::kMostDim];
    bf16* high = reinterpret_cast<bf16*>(row);
    for (int d = 0; d < dim; d += kW) split(load(row + d), high + d, low + d);
    std::memcpy(high + dim, low, dim * sizeof(bf16));
  }
  static void raw_query(const void* q, std::int64_t at, int dim, float* to) {
    std::memcpy(to, static_cast<const bf16*>(q) + at, dim * sizeof(bf16));
  }
  static void weights(float* s, int cols, int rows, float*) {
    for (; rows > 0; --rows, s += kTile) {
      bf16* to = reinterpret_cast<bf16*>(s);
      for (int j = 0; j < cols; j += kW) narrow(load(s + j), to + j);
      to[cols] = {0};
    }
  }
  static void logits(const float* q, const float*, int dim, const bf16* keys, std::int64_t ld,
                     float* s, int rows, int cols, float scale, bool exact, const void* next,
                     std::int64_t bytes) {
    const bf16* a = reinterpret_cast<const bf16*>(q);
    const RowPairs<bf16> b{keys, ld, 0, dim};
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
  template <class T>
  static void values(const float* s, const float*, int column, const T* v, std::int64_t ld,
                     int tokens, float* o, int rows, int dim, const void* next,
                     std::int64_t bytes) {
    // Pairs are those of even columns, so that sums do not know where a block begins.
    const int begin = column % 2, end = begin + tokens;
    dots<true, 1>(reinterpret_cast<const bf16*>(s) + column - begin, 2 * kTile, 0,
                  RowPairs<T>{v - begin * ld, ld, begin, end}, end, o, dim, rows, dim, 1.f, next,
                  bytes);
  }
};

}  // namespace

#endif
