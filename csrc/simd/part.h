// SPDX-License-Identifier: Apache-2.0
// The ends of rows: vectors of fewer elements than lanes.
#pragma once
#include <string.h>

#include "vec.h"

namespace {

// The first n < kW of the elements at p, 0 behind them; reads no further. Of none, p may be null.
template <class T>
inline F load_part(const T* p, int n) {
  T lanes[kW];
  memset(lanes, 0, sizeof lanes);
  if (n > 0) memcpy(lanes, p, static_cast<std::size_t>(n) * sizeof(T));
  return load(lanes);
}

#if defined(HEADRACE_AVX512)
inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline __m256i load_part_16(const void* p, int n) {
  return _mm256_maskz_loadu_epi16(first_lanes(n), p);
}
template <>
inline F load_part(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
template <>
inline F load_part(const bf16* p, int n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_part_16(p, n)), 16))};
}
template <>
inline F load_part(const fp16* p, int n) {
  return {_mm512_cvtph_ps(load_part_16(p, n))};
}
#endif

// The first n < kW lanes to p; writes no further.
template <class T>
inline void store_part(T* p, F x, int n) {
  T lanes[kW];
  store(lanes, x);
  if (n > 0) memcpy(p, lanes, static_cast<std::size_t>(n) * sizeof(T));
}

#if defined(HEADRACE_AVX512)
template <>
inline void store_part(float* p, F x, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), x.v);
}
#endif

}  // namespace
