// SPDX-License-Identifier: Apache-2.0
// Sums of products of signs. Bits that agree less bits that differ, over any number of queries, is
// at every place of the word a weight, its size known, times a sign: so the queries fold into the
// signs of the weights and, plane by plane, the binary digits of their sizes.
#pragma once
#include "args.h"
#include "carries.inl.h"

namespace {

// apart[j] += the weights at which word j of the rows differs, for a tile.
#if defined(HEADRACE_AVX512)
// A level of its own in all but name: what other processors of the level lack is one instruction.
template <int P>
__attribute__((target("avx512vpopcntdq"))) inline void apart_fast(const BitRows& b,
                                                                  std::int32_t* apart) {
  constexpr int kAll = headrace::kScoreTile / 16;
  __m512i total[kAll];
  for (int v = 0; v < kAll; ++v) total[v] = _mm512_loadu_si512(apart + 16 * v);
  const int planes = P ? P : b.planes;
  for (std::int64_t r = 0; r < b.count; ++r) {
    const std::uint32_t *words = b.words + r * b.step, *fold = b.fold + r * b.fold_step;
    if (b.more) {  // short pieces of many rows are no streams to a processor
      for (int v = 0; v < kAll; ++v) __builtin_prefetch(words + kBitsAhead + 16 * v);
    }
    const __m512i signs = _mm512_set1_epi32(static_cast<int>(fold[0]));
    __m512i kept[P ? P : 1];
    for (int p = 0; p < P; ++p) kept[p] = _mm512_set1_epi32(static_cast<int>(fold[1 + p]));
    for (int v = 0; v < kAll; ++v) {
      const __m512i w = _mm512_loadu_si512(words + 16 * v);
      __m512i sum = _mm512_setzero_si512();
      for (int p = 0; p < planes; ++p) {
        const __m512i plane =
            P ? kept[P ? p : 0] : _mm512_set1_epi32(static_cast<int>(fold[1 + p]));
        const __m512i x = _mm512_ternarylogic_epi32(w, signs, plane, 0x28);  // (w ^ signs) & plane
        const __m512i n = _mm512_popcnt_epi32(x);
        sum = p ? _mm512_add_epi32(_mm512_add_epi32(sum, sum), n) : n;
      }
      total[v] = _mm512_add_epi32(total[v], sum);
    }
  }
  for (int v = 0; v < kAll; ++v) _mm512_storeu_si512(apart + 16 * v, total[v]);
}
#endif

inline void bits_apart(bool fast, const BitRows& b, std::int32_t* apart) {
#if defined(HEADRACE_AVX512)
  if (!fast) return apart_carried(b, apart);
  if (b.planes == 1) return apart_fast<1>(b, apart);
  if (b.planes == 2) return apart_fast<2>(b, apart);
  if (b.planes == 3) return apart_fast<3>(b, apart);
  apart_fast<0>(b, apart);
#elif defined(HEADRACE_AVX2)
  static_cast<void>(fast);
  apart_carried(b, apart);
#else
  static_cast<void>(fast);
  for (std::int64_t r = 0; r < b.count; ++r) {
    const std::uint32_t *words = b.words + r * b.step, *fold = b.fold + r * b.fold_step;
    std::int32_t sum[headrace::kScoreTile] = {};
    for (int p = 0; p < b.planes; ++p) {
      for (int j = 0; j < headrace::kScoreTile; ++j) {
        std::uint32_t x = (words[j] ^ fold[0]) & fold[1 + p];
        x -= (x >> 1) & 0x55555555u;
        x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
        x = (x + (x >> 4)) & 0x0f0f0f0fu;
        sum[j] = 2 * sum[j] + static_cast<std::int32_t>((x * 0x01010101u) >> 24);
      }
    }
    for (int j = 0; j < headrace::kScoreTile; ++j) apart[j] += sum[j];
  }
#endif
}

}  // namespace
