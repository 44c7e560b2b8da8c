// SPDX-License-Identifier: Apache-2.0
// AVX2 (with fma and f16c) vectors of 8 fp32 lanes. Included only by files compiled for that level.
#pragma once
#include <immintrin.h>

#include "types.h"

namespace {

using headrace::bf16;
using headrace::e4m3;
using headrace::fp16;

struct F {
  static constexpr int width = 8;
  static constexpr int registers = 16;
  __m256 v;
};

inline F zero() { return {_mm256_setzero_ps()}; }
inline F set1(float x) { return {_mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F load(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
inline F load(const fp16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline F load(const std::int8_t* p) {
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))};
}
// Moved into fp16 a code of e4m3 reads as 2^-8 of its value, subnormals included. Adding one to the
// magnitude 0x7f, and to no other, carries into the exponent bit that makes it NaN.
inline __m256i e4m3_in_fp16(__m128i codes) {
  const __m256i half = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);  // the sign in two bits
  const __m256i more = _mm256_add_epi16(half, _mm256_set1_epi16(0x80));
  return _mm256_xor_si256(half, _mm256_and_si256(more, _mm256_set1_epi16(0x4000)));
}
inline F load_small(const e4m3* p) {
  const __m256i half = e4m3_in_fp16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(half))};
}
inline void load_small_pair(const e4m3* p, F* out) {
  const __m256i half = e4m3_in_fp16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  out[0] = {_mm256_cvtph_ps(_mm256_castsi256_si128(half))};
  out[1] = {_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
}
inline void store(float* p, F a) { _mm256_storeu_ps(p, a.v); }
inline void store(fp16* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(bf16* p, F a) {
  const __m256i x = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x00400000));
  const __m256i out = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(out, out), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

inline F add(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// A NaN in the second operand survives.
inline F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F round(F a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^n for integral n; below 2^-126 it underflows to 0.
inline F scale2(F x, F n) {
  const __m256 tiny = _mm256_cmp_ps(n.v, _mm256_set1_ps(-126.f), _CMP_LT_OQ);
  const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  const __m256 p = _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
  return {_mm256_andnot_ps(tiny, _mm256_mul_ps(x.v, p))};
}
// Lanes i with lo <= i < hi keep a, the others take b.
inline F keep(F a, F b, int lo, int hi) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i in = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), lane),
                                         _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), lane));
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(in))};
}

// The reductions add in one fixed tree, so their bits depend on the lanes alone.
inline float hsum(F a) {
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
// out[i] = hsum(a[i]) for four, in the same tree.
inline void hsum4(const F* a, float* out) {
  __m128 t[4];
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm_add_ps(_mm256_castps256_ps128(a[i].v), _mm256_extractf128_ps(a[i].v, 1));
  }
  _MM_TRANSPOSE4_PS(t[0], t[1], t[2], t[3]);
  _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(t[0], t[2]), _mm_add_ps(t[1], t[3])));
}
inline void hsum16(const F* a, float* out) {
  for (int i = 0; i < 16; i += 4) hsum4(a + i, out + i);
}
inline float hmax(F a) {
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}

// rows[i] holds row i of an 8 x 8 block; afterwards rows[i] holds column i.
inline void transpose(F rows[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

}  // namespace
