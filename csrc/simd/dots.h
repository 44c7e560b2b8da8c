// SPDX-License-Identifier: Apache-2.0
// The instructions that AVX512-BF16, VNNI and VBMI add. A build with HEADRACE_EMULATE works them
// out with those of AVX-512, as the manual describes them, so that their level can be tested on a
// processor without them; it is no quicker than the level below.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

#if defined(HEADRACE_EMULATE)

inline __m512i dot_int16(__m512i c, __m512i a, __m512i b) {
  return _mm512_add_epi32(c, _mm512_madd_epi16(a, b));
}

inline __m512i dot_int8(__m512i c, __m512i a, __m512i b) {
  const __m512i low = _mm512_set1_epi16(0xff);
  const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8);
  c = _mm512_add_epi32(c, _mm512_madd_epi16(_mm512_and_si512(a, low), even));
  return _mm512_add_epi32(c, _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8)));
}

// Subnormals as zeros of their sign.
inline __m512 flushed(__m512i a) {
  const __mmask16 small = _mm512_testn_epi32_mask(a, _mm512_set1_epi32(0x7f800000));
  return _mm512_castsi512_ps(_mm512_mask_and_epi32(a, small, a, _mm512_set1_epi32(1 << 31)));
}

// c + the products of the odd elements, then of the even ones.
inline __m512 dot_bf16(__m512 c, __m512i a, __m512i b) {
  const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const auto add = [](__m512i x, __m512i y, __m512 sum) {
    return flushed(_mm512_castps_si512(_mm512_fmadd_ps(flushed(x), flushed(y), sum)));
  };
  c = add(_mm512_and_si512(a, odd), _mm512_and_si512(b, odd), flushed(_mm512_castps_si512(c)));
  return add(_mm512_slli_epi32(a, 16), _mm512_slli_epi32(b, 16), c);
}

inline __m512i byte_of(const std::uint8_t* table, __m512i at) {
  alignas(64) std::uint8_t bytes[64];
  _mm512_store_si512(bytes, at);
  for (std::uint8_t& byte : bytes) byte = table[byte & 0x7f];
  return _mm512_load_si512(bytes);
}

// To the nearest bf16, the even one of two; a NaN stays one.
inline __m256i round_bf16(__m512 a) {
  const __m512i bits = _mm512_castps_si512(flushed(_mm512_castps_si512(a)));
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff));
  const __m512i near = _mm512_mask_add_epi32(_mm512_or_si512(bits, _mm512_set1_epi32(1 << 22)),
                                             _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), bits, up);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(near, 16));
}

#else

// As an intrinsic it comes with two copies of the sum in GCC 12.
inline __m512i dot_int16(__m512i c, __m512i a, __m512i b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}

inline __m512i dot_int8(__m512i c, __m512i a, __m512i b) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}

#if defined(HEADRACE_AVX512_BF16)
inline __m512 dot_bf16(__m512 c, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Bytes of a table of 128; the highest bit of what names them does not count.
inline __m512i byte_of(const std::uint8_t* table, __m512i at) {
  return _mm512_permutex2var_epi8(_mm512_load_si512(table), at, _mm512_load_si512(table + 64));
}

inline __m256i round_bf16(__m512 a) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)); }
#endif

#endif

}  // namespace
