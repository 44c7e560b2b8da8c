// SPDX-License-Identifier: Apache-2.0
// Sums of products of signs. Bits that agree less bits that differ, over any number of queries, is
// at every place of the word a weight, its size known, times a sign: so the queries fold into the
// signs of the weights and, plane by plane, the binary digits of their sizes.
#pragma once
#include "args.h"
#include "csrc/simd/vec.h"

namespace {

constexpr int kBitWords = 16;  // words of a row at most

constexpr std::int64_t kBitsAhead = 1024;  // words

// Rows of words and what is asked of each: row i of `count` lies at words + i * step, and of its
// weights fold + i * fold_step has the signs, then the planes of their sizes from the highest down.
struct BitRows {
  const std::uint32_t *words, *fold;
  std::int64_t step, fold_step, count;
  int planes;
  bool more;  // after these words of every row come others
};

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

#if defined(HEADRACE_AVX512) || defined(HEADRACE_AVX2)
inline void apart_bytes(const BitRows& b, std::int32_t* apart) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi8(1), wide = _mm256_set1_epi16(1);
  for (std::int64_t r = 0; r < b.count; ++r) {
    const std::uint32_t *words = b.words + r * b.step, *fold = b.fold + r * b.fold_step;
    const __m256i signs = _mm256_set1_epi32(static_cast<int>(fold[0]));
    for (int i = 0; i < headrace::kScoreTile; i += 8) {
      if (b.more && i % 16 == 0) __builtin_prefetch(words + kBitsAhead + i);
      __m256i* to = reinterpret_cast<__m256i*>(apart + i);
      const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i));
      const __m256i differ = _mm256_xor_si256(w, signs);
      __m256i sum = _mm256_setzero_si256();
      for (int p = 0; p < b.planes; ++p) {
        const __m256i plane = _mm256_set1_epi32(static_cast<int>(fold[1 + p]));
        const __m256i x = _mm256_and_si256(differ, plane);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(x, 4), low);
        const __m256i bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
                                              _mm256_shuffle_epi8(table, high));
        const __m256i n = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, ones), wide);
        sum = _mm256_add_epi32(_mm256_add_epi32(sum, sum), n);
      }
      _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), sum));
    }
  }
}
#endif

inline void bits_apart(bool fast, const BitRows& b, std::int32_t* apart) {
#if defined(HEADRACE_AVX512)
  if (!fast) return apart_bytes(b, apart);
  if (b.planes == 1) return apart_fast<1>(b, apart);
  if (b.planes == 2) return apart_fast<2>(b, apart);
  if (b.planes == 3) return apart_fast<3>(b, apart);
  apart_fast<0>(b, apart);
#elif defined(HEADRACE_AVX2)
  static_cast<void>(fast);
  apart_bytes(b, apart);
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
