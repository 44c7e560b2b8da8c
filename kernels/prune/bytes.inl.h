// SPDX-License-Identifier: Apache-2.0
// Pixels: bytes as fp32 lanes, and sums of absolute differences in whole numbers.
#pragma once
#include <string.h>

#include "csrc/simd/vec.h"

namespace {

struct u8 {
  std::uint8_t value;
};

inline F load(const u8* p) {
#if defined(HEADRACE_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
#elif defined(HEADRACE_AVX2)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))};
#else
  F out;
  for (int i = 0; i < kW; ++i) out.v[i] = static_cast<float>(p[i].value);
  return out;
#endif
}

// Running sums of a patch: kBins numbers that are added up at the end.
#if defined(HEADRACE_AVX512)
constexpr int kBins = 8;
#elif defined(HEADRACE_AVX2)
constexpr int kBins = 4;
#else
constexpr int kBins = 1;
#endif

// bins += |x - r| of n bytes.
inline void add_differences(const u8* x, const u8* r, std::int64_t n, std::uint64_t* bins) {
#if defined(HEADRACE_AVX512)
  __m512i sum = _mm512_loadu_si512(bins);
  std::int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    sum = _mm512_add_epi64(sum,
                           _mm512_sad_epu8(_mm512_loadu_si512(x + i), _mm512_loadu_si512(r + i)));
  }
  if (i < n) {
    const __mmask64 some = ~std::uint64_t{0} >> (64 - (n - i));
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(some, x + i),
                                                _mm512_maskz_loadu_epi8(some, r + i)));
  }
  _mm512_storeu_si512(bins, sum);
#elif defined(HEADRACE_AVX2)
  const auto at = [](const u8* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  };
  __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bins));
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32) sum = _mm256_add_epi64(sum, _mm256_sad_epu8(at(x + i), at(r + i)));
  if (i < n && n >= 32) {  // the last 32 again, without those that were counted
    alignas(32) std::uint8_t keep[64] = {};
    memset(keep + 32, 0xff, 32);
    const __m256i mask = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keep + (n - i)));
    const __m256i a = _mm256_and_si256(at(x + n - 32), mask);
    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(a, _mm256_and_si256(at(r + n - 32), mask)));
  } else if (i < n) {
    u8 a[32] = {}, b[32] = {};
    memcpy(a, x, static_cast<std::size_t>(n));
    memcpy(b, r, static_cast<std::size_t>(n));
    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(at(a), at(b)));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bins), sum);
#else
  std::int64_t i = 0;
  for (; i < n;) {  // short sums in 32 bits, which the compiler turns into vectors
    const std::int64_t end = n - i < 65536 ? n : i + 65536;
    std::uint32_t part = 0;
    for (; i < end; ++i) {
      const int d = x[i].value - r[i].value;
      part += static_cast<std::uint32_t>(d < 0 ? -d : d);
    }
    bins[0] += part;
  }
#endif
}

}  // namespace
