// SPDX-License-Identifier: Apache-2.0
// AVX512-VNNI on top of AVX-512: dot products of pairs of int16, whose sums are exact.
#pragma once
#include "avx512.h"
#include "dots.h"

#define HEADRACE_WHOLE_DOTS

namespace {

// 16 lanes of two elements of 16 bits: the even one in the low half.
struct Pairs {
  __m512i v;
};

// Both elements at p in every lane.
inline Pairs set1_pair(const void* p) {
  int both;
  __builtin_memcpy(&both, p, 4);
  return {_mm512_set1_epi32(both)};
}

// 16 lanes of fp32 as whole numbers of 32 bits, and lanes of two int16.
struct Whole {
  __m512i v;
};
inline Whole no_whole() { return {_mm512_setzero_si512()}; }
inline Whole dot16(Pairs a, Pairs b, Whole c) { return {dot_int16(c.v, a.v, b.v)}; }
inline F to_float(Whole a) { return {_mm512_cvtepi32_ps(a.v)}; }

// 16 lanes of four bytes.
struct Quads {
  __m512i v;
};
inline Quads load_quads(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_quads(void* p, Quads a) { _mm512_storeu_si512(p, a.v); }
// The four bytes, or the whole number, at p in every lane.
inline Quads set1_quad(const void* p) { return {set1_pair(p).v}; }
inline Whole set1_whole(const void* p) { return {set1_pair(p).v}; }
// c + the products of four bytes without a sign by four with one.
inline Whole dot8(Quads a, Quads b, Whole c) { return {dot_int8(c.v, a.v, b.v)}; }
// 256 a + b
inline Whole join_digits(Whole a, Whole b) {
  return {_mm512_add_epi32(_mm512_slli_epi32(a.v, 8), b.v)};
}

// Codes of four rows as bytes without a sign, 128 more than they are: a column a lane. Of 64
// columns, columns 4h to 4h + 3 of every 16 (out[0]) and the four behind them (out[1]), h 0 or 2.
template <int High>
inline void quad_codes(const std::int8_t* rows, std::int64_t apart, Quads* out) {
  const auto pairs = [=](int i) {
    const __m512i a = _mm512_loadu_si512(rows + i * apart);
    const __m512i b = _mm512_loadu_si512(rows + (i + 1) * apart);
    return High ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
  };
  const __m512i sign = _mm512_set1_epi8(-128), a = pairs(0), b = pairs(2);
  out[0] = {_mm512_xor_si512(_mm512_unpacklo_epi16(a, b), sign)};
  out[1] = {_mm512_xor_si512(_mm512_unpackhi_epi16(a, b), sign)};
}
// In every four lanes, bytes of four elements become elements of four bytes, or back.
inline __m512i turn_quads(__m512i a) {
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_shuffle_epi8(a, order);
}
// The same of 16 columns, in order.
inline Quads quad_codes(const std::int8_t* rows, std::int64_t apart) {
  const auto row = [=](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * apart));
  };
  __m512i all = _mm512_castsi128_si512(row(0));
  all = _mm512_inserti32x4(all, row(1), 1);
  all = _mm512_inserti32x4(all, row(2), 2);
  all = _mm512_inserti32x4(all, row(3), 3);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  all = turn_quads(_mm512_permutexvar_epi32(order, all));
  return {_mm512_xor_si512(all, _mm512_set1_epi8(-128))};
}
// 16 whole numbers below 2^(8 D - 1) as D digits with a sign, the lowest first: in every four lanes
// those of four numbers, and zeros.
template <int D>
inline Quads digits(F a) {
  const __m512i half = _mm512_set1_epi32(D == 2 ? 0x8080 : 0x808080);
  const __m512i whole = _mm512_cvtps_epi32(a.v);
  return {turn_quads(_mm512_xor_si512(_mm512_add_epi32(whole, half), half))};
}
// -128 times the sums of such digits, in each four lanes of p.
inline Whole less_digits(Quads a, Whole c) {
  return {_mm512_sub_epi32(c.v, dot_int8(_mm512_setzero_si512(), _mm512_set1_epi8(-128), a.v))};
}
// The larger magnitude; an infinity is larger than all, and a NaN than that.
inline Whole most_bits(F a, Whole top) {
  const __m512i bits = _mm512_castps_si512(_mm512_abs_ps(a.v));
  return {_mm512_max_epi32(bits, top.v)};
}
// out[i] = the largest lane of a[i], as the float that it is.
template <int N>
inline void hmax_bits(const Whole* a, float* out) {
  __m128i t[4] = {};
  for (int i = 0; i < N; ++i) {
    const __m256i s =
        _mm256_max_epi32(_mm512_castsi512_si256(a[i].v), _mm512_extracti64x4_epi64(a[i].v, 1));
    t[i] = _mm_max_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  }
  const __m128i x = _mm_max_epi32(_mm_unpacklo_epi32(t[0], t[1]), _mm_unpackhi_epi32(t[0], t[1]));
  const __m128i y = _mm_max_epi32(_mm_unpacklo_epi32(t[2], t[3]), _mm_unpackhi_epi32(t[2], t[3]));
  const __m128i most = _mm_max_epi32(_mm_unpacklo_epi64(x, y), _mm_unpackhi_epi64(x, y));
  __builtin_memcpy(out, &most, N * sizeof(float));
}
// The sums over the four lanes of four.
inline Whole sum_lanes(Whole a) {
  const __m512i b = _mm512_add_epi32(a.v, _mm512_shuffle_i64x2(a.v, a.v, 0x4e));
  return {_mm512_add_epi32(b, _mm512_shuffle_i64x2(b, b, 0xb1))};
}

}  // namespace
