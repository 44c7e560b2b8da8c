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

// Sums of some rows down their columns: kColumns numbers of 16 bits.
#if defined(HEADRACE_AVX512)
#define HEADRACE_COLUMNS
constexpr int kColumns = 32;
struct Columns {
  __m512i v;
};
inline Columns no_columns() { return {_mm512_setzero_si512()}; }
inline Columns load_columns(const std::uint16_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_columns(std::uint16_t* p, Columns a) { _mm512_storeu_si512(p, a.v); }
inline Columns add_columns(Columns a, Columns b) { return {_mm512_add_epi16(a.v, b.v)}; }
// 1 in the first n.
inline Columns first_columns(std::int64_t n) {
  return {_mm512_maskz_set1_epi16(n < 32 ? (1u << n) - 1u : ~0u, 1)};
}
inline Columns columns_of(__m256i x, __m256i r) {
  return {_mm512_cvtepu8_epi16(_mm256_or_si256(_mm256_subs_epu8(x, r), _mm256_subs_epu8(r, x)))};
}
// |x - r|, of all or the first n.
inline Columns columns_apart(const u8* x, const u8* r) {
  return columns_of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)),
                    _mm256_loadu_si256(reinterpret_cast<const __m256i*>(r)));
}
inline Columns columns_apart(const u8* x, const u8* r, int n) {
  const __mmask32 some = (1u << n) - 1u;
  return columns_of(_mm256_maskz_loadu_epi8(some, x), _mm256_maskz_loadu_epi8(some, r));
}
// Neighbours times 0 or 1, added up; all of those.
inline Columns add_some(Columns sum, Columns a, Columns by) {
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, by.v))};
}
inline std::int32_t all_of(Columns a) { return _mm512_reduce_add_epi32(a.v); }
#elif defined(HEADRACE_AVX2)
#define HEADRACE_COLUMNS
constexpr int kColumns = 16;
struct Columns {
  __m256i v;
};
inline Columns no_columns() { return {_mm256_setzero_si256()}; }
inline Columns load_columns(const std::uint16_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline void store_columns(std::uint16_t* p, Columns a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
inline Columns add_columns(Columns a, Columns b) { return {_mm256_add_epi16(a.v, b.v)}; }
inline Columns first_columns(std::int64_t n) {
  const __m256i at = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m256i most = _mm256_set1_epi16(static_cast<short>(n < 16 ? n : 16));
  return {_mm256_srli_epi16(_mm256_cmpgt_epi16(most, at), 15)};
}
inline Columns columns_apart(const u8* x, const u8* r) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(r));
  return {_mm256_cvtepu8_epi16(_mm_or_si128(_mm_subs_epu8(a, b), _mm_subs_epu8(b, a)))};
}
inline Columns columns_apart(const u8* x, const u8* r, int n) {
  u8 a[16] = {}, b[16] = {};
  memcpy(a, x, static_cast<std::size_t>(n));
  memcpy(b, r, static_cast<std::size_t>(n));
  return columns_apart(a, b);
}
inline Columns add_some(Columns sum, Columns a, Columns by) {
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, by.v))};
}
inline std::int32_t all_of(Columns a) {
  const __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  const __m128i c = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
}
#endif

#ifdef HEADRACE_COLUMNS
constexpr int kColumnRows = 128;  // of bytes, below 2^15: their sums are multiplied with a sign

// Sums along the first n, and then those of their neighbours, up to `all`; at each whole register
// behind them there may be a load.
template <class Body>
inline void along_columns(const std::uint16_t* p, std::int64_t n, std::int64_t all,
                          const Body& body) {
  const std::int64_t whole = n / kColumns * kColumns;
  const Columns every = first_columns(kColumns), some = first_columns(n - whole);
  std::int64_t at = 0;
  for (; at + n <= all; at += n) {
    Columns sum = add_some(no_columns(), load_columns(p + at + whole), some);
    for (std::int64_t c = at; c < at + whole; c += kColumns) {
      sum = add_some(sum, load_columns(p + c), every);
    }
    body(all_of(sum));
  }
  if (at < all) along_columns(p + at, all - at, all - at, body);  // one that is narrower
}
#endif

}  // namespace
