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

// The same rows of two frames of pixels.
struct Pixels {
  const u8* x;
  const u8* ref;
  std::int64_t x_row, ref_row;  // bytes from row to row
  std::int64_t line;            // bytes of a row
  std::int64_t rows;
};

// So many bytes of a frame are read at a time, patch by patch: what follows them comes to the
// second-level cache meanwhile, for the rows of a patch lie too far apart for a processor to see
// the next ones coming.
constexpr std::int64_t kBand = 64 * 1024;

#if defined(HEADRACE_AVX512)
#define HEADRACE_BYTES
constexpr std::int64_t kPiece = 64;  // bytes
using Sums = __m512i;
inline Sums no_sums() { return _mm512_setzero_si512(); }
inline Sums more(Sums sums, __m512i x, __m512i ref) {
  return _mm512_add_epi64(sums, _mm512_sad_epu8(x, ref));
}
inline Sums add_piece(Sums sums, const u8* x, const u8* ref) {
  return more(sums, _mm512_loadu_si512(x), _mm512_loadu_si512(ref));
}
inline std::uint64_t total(Sums sums) {
  return static_cast<std::uint64_t>(_mm512_reduce_add_epi64(sums));
}
// The first n bytes of a piece at `at` of a line, or all.
struct Last {
  __mmask64 some;
  Last(std::int64_t, std::int64_t n, std::int64_t) : some(~std::uint64_t{0} >> (kPiece - n)) {}
  Sums add(Sums sums, const u8* x, const u8* ref) const {
    return more(sums, _mm512_maskz_loadu_epi8(some, x), _mm512_maskz_loadu_epi8(some, ref));
  }
};
#elif defined(HEADRACE_AVX2)
#define HEADRACE_BYTES
constexpr std::int64_t kPiece = 32;  // bytes
using Sums = __m256i;
inline Sums no_sums() { return _mm256_setzero_si256(); }
inline __m256i piece(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Sums more(Sums sums, __m256i x, __m256i ref) {
  return _mm256_add_epi64(sums, _mm256_sad_epu8(x, ref));
}
inline Sums add_piece(Sums sums, const u8* x, const u8* ref) {
  return more(sums, piece(x), piece(ref));
}
inline std::uint64_t total(Sums sums) {
  const __m128i half =
      _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(half)) +
         static_cast<std::uint64_t>(_mm_extract_epi64(half, 1));
}
// The first n bytes of a piece at `at` of a line, or all; loaded from further ahead where the line
// ends before the piece does, and copied where it is shorter than a piece.
struct Last {
  std::int64_t n, back;
  __m256i some;
  Last(std::int64_t at, std::int64_t n_, std::int64_t line)
      : n(n_), back(at + kPiece > line ? at + kPiece - line : 0) {
    std::uint8_t keep[3 * kPiece] = {};
    memset(keep + kPiece, 0xff, static_cast<std::size_t>(n));
    some = piece(keep + kPiece - (line < kPiece ? 0 : back));
    if (line < kPiece) back = -1;
  }
  Sums add(Sums sums, const u8* x, const u8* ref) const {
    if (back >= 0) {
      return more(sums, _mm256_and_si256(piece(x - back), some),
                  _mm256_and_si256(piece(ref - back), some));
    }
    u8 u[kPiece] = {}, v[kPiece] = {};
    memcpy(u, x, static_cast<std::size_t>(n));
    memcpy(v, ref, static_cast<std::size_t>(n));
    return more(sums, piece(u), piece(v));
  }
};
#endif

// The sum of |x - ref| over bytes [from, from + n) of every row; n is 1 or more.
#ifdef HEADRACE_BYTES
inline std::uint64_t apart(const Pixels& a, std::int64_t from, std::int64_t n) {
  const std::int64_t whole = (n - 1) / kPiece * kPiece;
  const Last last(from + whole, n - whole, a.line);
  const std::int64_t x_ahead = a.rows * a.x_row, ref_ahead = a.rows * a.ref_row;
  Sums sums = no_sums();
  const u8* x = a.x + from;
  const u8* ref = a.ref + from;
  for (std::int64_t row = 0; row < a.rows; ++row, x += a.x_row, ref += a.ref_row) {
    for (std::int64_t i = 0;; i += kPiece) {
      __builtin_prefetch(x + i + x_ahead, 0, 2);
      __builtin_prefetch(ref + i + ref_ahead, 0, 2);
      if (i == whole) break;
      sums = add_piece(sums, x + i, ref + i);
    }
    sums = last.add(sums, x + whole, ref + whole);
  }
  return total(sums);
}
#else
inline std::uint64_t apart(const Pixels& a, std::int64_t from, std::int64_t n) {
  constexpr std::int64_t kShort = 65536;  // sums in 32 bits, which the compiler turns into vectors
  std::uint64_t sum = 0;
  for (std::int64_t row = 0; row < a.rows; ++row) {
    const u8* x = a.x + row * a.x_row + from;
    const u8* r = a.ref + row * a.ref_row + from;
    for (std::int64_t i = 0; i < n;) {
      const std::int64_t end = n - i < kShort ? n : i + kShort;
      std::uint32_t part = 0;
      for (; i < end; ++i) {
        const int d = x[i].value - r[i].value;
        part += static_cast<std::uint32_t>(d < 0 ? -d : d);
      }
      sum += part;
    }
  }
  return sum;
}
#endif

}  // namespace
