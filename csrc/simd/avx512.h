// SPDX-License-Identifier: Apache-2.0
// AVX-512 (f, bw, vl, dq) vectors of 16 fp32 lanes. Included only by files compiled for that level.
#pragma once
#include <immintrin.h>

#include "types.h"

namespace {

using headrace::bf16;
using headrace::e4m3;
using headrace::fp16;

struct F {
  static constexpr int width = 16;
  static constexpr int registers = 32;
  __m512 v;
};

inline F zero() { return {_mm512_setzero_ps()}; }
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
// Two vectors of a row, widened with half the work where the first takes the columns of even number
// and the second those of odd number; the same of vectors in order, and back.
#define HEADRACE_APART
inline void load_apart(const bf16* p, F* out) {
  const __m512i both = _mm512_loadu_si512(p),
                odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  out[0] = {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))};
  out[1] = {_mm512_castsi512_ps(_mm512_and_si512(both, odd))};
}
inline void take_apart(F* two) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  const __m512 first = _mm512_permutex2var_ps(two[0].v, even, two[1].v);
  two[1] = {_mm512_permutex2var_ps(two[0].v, odd, two[1].v)};
  two[0] = {first};
}
inline void put_together(F* two) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512 first = _mm512_permutex2var_ps(two[0].v, low, two[1].v);
  two[1] = {_mm512_permutex2var_ps(two[0].v, high, two[1].v)};
  two[0] = {first};
}
inline F load(const fp16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F load(const std::int8_t* p) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
}
// Moved into fp16 a code of e4m3 reads as 2^-8 of its value, subnormals included. Adding one to the
// magnitude 0x7f, and to no other, carries into the exponent bit that makes it NaN.
inline __m512i e4m3_in_fp16(__m256i codes) {
  const __m512i half = _mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7);  // the sign in two bits
  const __m512i more = _mm512_add_epi16(half, _mm512_set1_epi16(0x80));
  // half ^ (more & 0x4000)
  return _mm512_ternarylogic_epi32(half, more, _mm512_set1_epi16(0x4000), 0x78);
}
inline F load_small(const e4m3* p) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m512i half = e4m3_in_fp16(_mm256_castsi128_si256(codes));
  return {_mm512_cvtph_ps(_mm512_castsi512_si256(half))};
}
inline void load_small_pair(const e4m3* p, F* out) {
  const __m512i half = e4m3_in_fp16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  out[0] = {_mm512_cvtph_ps(_mm512_castsi512_si256(half))};
  out[1] = {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1))};
}
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline void store(fp16* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(bf16* p, F a) {
  const __m512i x = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(x, _mm512_set1_epi32(0x00400000));
  const __m512i out = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, up, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(out));
}

inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// A NaN in the second operand survives.
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F round(F a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^n for integral n; underflows to 0.
// What would be subnormal is 0: some processors take 25 times as long over a vector with one.
inline F scale2(F x, F n) {
  const __mmask16 in = _mm512_cmp_ps_mask(n.v, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
  return {_mm512_maskz_scalef_ps(in, x.v, n.v)};
}
// Lanes i with lo <= i < hi keep a, the others take b.
inline F keep(F a, F b, int lo, int hi) {
  const auto upto = [](int n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u; };
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(upto(hi) & ~upto(lo)), b.v, a.v)};
}

// The reductions add in one fixed tree, so their bits depend on the lanes alone.
inline float hsum(F a) {
  __m256 s = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
// out[i] = hsum(a[i]) for four, in the same tree.
inline void hsum4(const F* a, float* out) {
  __m128 t[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 s =
        _mm256_add_ps(_mm512_castps512_ps256(a[i].v), _mm512_extractf32x8_ps(a[i].v, 1));
    t[i] = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  }
  _MM_TRANSPOSE4_PS(t[0], t[1], t[2], t[3]);
  _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(t[0], t[2]), _mm_add_ps(t[1], t[3])));
}
// A vector as four lanes of four: rows of lanes become columns of them, as in a transpose.
#define HEADRACE_LANES
inline void transpose_lanes(F* v) {
  const auto some = [&](int i, int j, int which) {
    return which ? _mm512_shuffle_f32x4(v[i].v, v[j].v, 0xee)
                 : _mm512_shuffle_f32x4(v[i].v, v[j].v, 0x44);
  };
  const __m512 a = some(0, 1, 0), b = some(0, 1, 1), c = some(2, 3, 0), d = some(2, 3, 1);
  v[0] = {_mm512_shuffle_f32x4(a, c, 0x88)};
  v[1] = {_mm512_shuffle_f32x4(a, c, 0xdd)};
  v[2] = {_mm512_shuffle_f32x4(b, d, 0x88)};
  v[3] = {_mm512_shuffle_f32x4(b, d, 0xdd)};
}
// Four elements in every lane.
inline F spread(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
// One of the lanes of four in all of them.
inline F spread(F a, int which) {
  const __m512i at = _mm512_add_epi32(_mm512_set4_epi32(3, 2, 1, 0), _mm512_set1_epi32(4 * which));
  return {_mm512_permutexvar_ps(at, a.v)};
}
// The sums of the lanes of four, side by side in every lane, with the end of hsum's tree.
inline F sum_lanes(const F* a) {
  const auto pair = [](F p, F q) {
    return _mm512_castps_pd(
        _mm512_add_ps(_mm512_unpacklo_ps(p.v, q.v), _mm512_unpackhi_ps(p.v, q.v)));
  };
  const __m512d x = pair(a[0], a[1]), y = pair(a[2], a[3]);
  return {_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)))};
}

// out[i] = hsum(a[i]) for eight and for sixteen, in the same tree.
inline void hsum8(const F* a, float* out) {
  __m512 t[4];
  for (int n = 0; n < 4; ++n) {
    const __m512 x = a[n].v, y = a[4 + n].v;
    t[n] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  }
  // Lanes: two halves of the first sum, then of the second.
  const auto quarters = [&](int n) {
    const __m512 even = _mm512_shuffle_f32x4(t[n], t[n + 1], 0x88);
    return _mm512_add_ps(even, _mm512_shuffle_f32x4(t[n], t[n + 1], 0xdd));
  };
  const __m512 x = quarters(0), y = quarters(2);  // [0, 4, 1, 5] and [2, 6, 3, 7]
  const __m512 low = _mm512_shuffle_f32x4(x, y, 0x88), high = _mm512_shuffle_f32x4(x, y, 0xdd);
  // [0, 1, 2, 3] and [4, 5, 6, 7]: a transpose within four lanes of each.
  const auto sums = [](__m512 v) {
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512 u = _mm512_permutexvar_ps(order, v);  // element 0 of all, then 1, ...
    const __m256 a02 = _mm256_add_ps(_mm512_castps512_ps256(u), _mm512_extractf32x8_ps(u, 1));
    return _mm_add_ps(_mm256_castps256_ps128(a02), _mm256_extractf128_ps(a02, 1));
  };
  _mm_storeu_ps(out, sums(low));
  _mm_storeu_ps(out + 4, sums(high));
}
inline void hsum16(const F* a, float* out) {
  __m512 t[4];
  for (int n = 0; n < 4; ++n) {
    const auto halves = [&](int i, int j) {
      const __m512 x = a[4 * i + n].v, y = a[4 * j + n].v;
      return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    };
    const __m512 x = halves(0, 1), y = halves(2, 3);
    t[n] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  }
  const auto pair = [&](int i, int j) {
    return _mm512_castps_pd(
        _mm512_add_ps(_mm512_unpacklo_ps(t[i], t[j]), _mm512_unpackhi_ps(t[i], t[j])));
  };
  const __m512d x = pair(0, 1), y = pair(2, 3);
  _mm512_storeu_ps(out, _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                                      _mm512_castpd_ps(_mm512_unpackhi_pd(x, y))));
}
inline float hmax(F a) {
  __m256 s = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}

// rows[i] holds row i of a 16 x 16 block; afterwards rows[i] holds column i.
inline void transpose(F rows[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  __m512 u[16];
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    rows[i + 8].v = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    rows[i + 4].v = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    rows[i + 12].v = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

}  // namespace
