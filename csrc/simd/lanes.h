// SPDX-License-Identifier: Apache-2.0
// Comparisons of lanes as bit masks, and indices of set bits.
#pragma once
#include "vec.h"

namespace {

#if defined(HEADRACE_AVX512)
inline unsigned above(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline unsigned reached(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
#elif defined(HEADRACE_AVX2)
inline unsigned above(F a, F b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}
inline unsigned reached(F a, F b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
}
#else
inline unsigned above(F a, F b) {
  unsigned bits = 0;
  for (int i = 0; i < kW; ++i) bits |= static_cast<unsigned>(a.v[i] > b.v[i]) << i;
  return bits;
}
inline unsigned reached(F a, F b) {
  unsigned bits = 0;
  for (int i = 0; i < kW; ++i) bits |= static_cast<unsigned>(a.v[i] >= b.v[i]) << i;
  return bits;
}
#endif

// The first `n` of kW lanes.
inline unsigned first_of(std::int64_t n) {
  return n < kW ? (1u << n) - 1u : (1u << (kW - 1) << 1) - 1u;
}

inline float largest(F a) {
#if defined(HEADRACE_AVX512)
  return _mm512_reduce_max_ps(a.v);
#else
  float x[kW];
  store(x, a);
  for (int i = 1; i < kW; ++i) x[0] = x[i] > x[0] ? x[i] : x[0];
  return x[0];
#endif
}

// Whole numbers in lanes that count comparisons. Ordered: what is equal counts in lanes beyond j.
#if defined(HEADRACE_AVX512)
struct Tally {
  __m512i v;
};
inline Tally no_tally() { return {_mm512_setzero_si512()}; }
inline Tally tally_lanes(Tally t, unsigned lanes) {
  return {_mm512_mask_sub_epi32(t.v, static_cast<__mmask16>(lanes), t.v, _mm512_set1_epi32(-1))};
}
inline Tally tally_above(Tally t, F a, F b) { return tally_lanes(t, above(a, b)); }
inline Tally tally_reached(Tally t, F a, F b) { return tally_lanes(t, reached(a, b)); }
inline Tally tally_ordered(Tally t, F a, F b, int j) {
  return tally_lanes(t, above(a, b) | (reached(a, b) & (~1u << j)));
}
inline unsigned below(Tally t, int n) { return _mm512_cmplt_epi32_mask(t.v, _mm512_set1_epi32(n)); }
inline void store(std::int32_t* p, Tally t) { _mm512_storeu_si512(p, t.v); }
#elif defined(HEADRACE_AVX2)
struct Tally {
  __m256i v;
};
inline Tally no_tally() { return {_mm256_setzero_si256()}; }
inline Tally tally_lanes(Tally t, __m256 lanes) {
  return {_mm256_sub_epi32(t.v, _mm256_castps_si256(lanes))};
}
inline Tally tally_above(Tally t, F a, F b) {
  return tally_lanes(t, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ));
}
inline Tally tally_reached(Tally t, F a, F b) {
  return tally_lanes(t, _mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ));
}
inline Tally tally_ordered(Tally t, F a, F b, int j) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 later = _mm256_castsi256_ps(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(j)));
  const __m256 equal = _mm256_and_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ), later);
  return tally_lanes(t, _mm256_or_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ), equal));
}
inline unsigned below(Tally t, int n) {
  const __m256i less = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), t.v);
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(less)));
}
inline void store(std::int32_t* p, Tally t) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), t.v);
}
#else
struct Tally {
  std::int32_t v[kW];
};
inline Tally no_tally() { return {}; }
inline Tally tally_above(Tally t, F a, F b) {
  for (int i = 0; i < kW; ++i) t.v[i] += a.v[i] > b.v[i];
  return t;
}
inline Tally tally_reached(Tally t, F a, F b) {
  for (int i = 0; i < kW; ++i) t.v[i] += a.v[i] >= b.v[i];
  return t;
}
inline Tally tally_ordered(Tally t, F a, F b, int j) {
  for (int i = 0; i < kW; ++i) t.v[i] += i > j ? a.v[i] >= b.v[i] : a.v[i] > b.v[i];
  return t;
}
inline unsigned below(Tally t, int n) {
  unsigned bits = 0;
  for (int i = 0; i < kW; ++i) bits |= static_cast<unsigned>(t.v[i] < n) << i;
  return bits;
}
inline void store(std::int32_t* p, Tally t) { memcpy(p, t.v, sizeof t.v); }
#endif

inline int bits_of(unsigned mask) { return __builtin_popcount(mask); }

// Lanes of `mask` together at the front of out; writes no further.
inline void pack(F a, unsigned mask, float* out) {
#if defined(HEADRACE_AVX512)
  const __mmask16 front = static_cast<__mmask16>((1u << bits_of(mask)) - 1u);
  const __m512 packed = _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), a.v);
  _mm512_mask_storeu_ps(out, front, packed);
#else
  float x[kW];
  store(x, a);
  for (; mask; mask &= mask - 1) *out++ = x[__builtin_ctz(mask)];
#endif
}

// at + i for every set bit i; writes no further.
inline void pack_index(std::int64_t at, unsigned mask, std::int32_t* out) {
#if defined(HEADRACE_AVX512)
  const __mmask16 front = static_cast<__mmask16>((1u << bits_of(mask)) - 1u);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(at)));
  _mm512_mask_storeu_epi32(out, front,
                           _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), index));
#else
  for (; mask; mask &= mask - 1) {
    *out++ = static_cast<std::int32_t>(at + __builtin_ctz(mask));
  }
#endif
}

// How many of x[n] reach a bound; n < 2^31.
inline std::int64_t at_least(const float* x, std::int64_t n, float bound) {
  std::int64_t i = 0, total = 0;
#if defined(HEADRACE_AVX512)
  const __m512 b = _mm512_set1_ps(bound);
  const __m512i one = _mm512_set1_epi32(1);
  __m512i sum[4] = {};
  const auto step = [&](int u, __mmask16 lanes) {
    const __m512 v = _mm512_maskz_loadu_ps(lanes, x + i);
    const __mmask16 reached = _mm512_mask_cmp_ps_mask(lanes, v, b, _CMP_GE_OQ);
    sum[u] = _mm512_mask_add_epi32(sum[u], reached, sum[u], one);
    i += 16;
  };
  while (i + 64 <= n) {
    for (int u = 0; u < 4; ++u) step(u, 0xffff);
  }
  while (i + 16 <= n) step(0, 0xffff);
  if (i < n) step(1, static_cast<__mmask16>((1u << (n - i)) - 1u));
  for (const __m512i& s : sum) total += _mm512_reduce_add_epi32(s);
  return total;
#elif defined(HEADRACE_AVX2)
  const __m256 b = _mm256_set1_ps(bound);
  __m256i sum[4] = {};
  for (; i + 32 <= n; i += 32) {
    for (int u = 0; u < 4; ++u) {
      const __m256 v = _mm256_loadu_ps(x + i + u * 8);
      sum[u] = _mm256_sub_epi32(sum[u], _mm256_castps_si256(_mm256_cmp_ps(v, b, _CMP_GE_OQ)));
    }
  }
  alignas(32) std::int32_t lanes[8];
  for (const __m256i& s : sum) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), s);
    for (const std::int32_t lane : lanes) total += lane;
  }
#endif
  for (; i < n; ++i) total += x[i] >= bound;
  return total;
}

}  // namespace
