// SPDX-License-Identifier: Apache-2.0
// Weights out of a pool as fp32: floats are widened, codes are multiplied by their group's scale.
#pragma once
#include <string.h>

#include <type_traits>

#include "csrc/simd/vec.h"

namespace {

struct i8 {
  std::int8_t value;
};
struct i4 {  // two codes, see widen_codes
  std::uint8_t pair;
};
template <class T>
constexpr bool kCodes = false;
template <>
constexpr bool kCodes<i8> = true;
template <>
constexpr bool kCodes<i4> = true;

// n floats out of n elements, zeros up to a whole vector behind them.
template <class T>
inline void widen(const T* from, std::int64_t n, float* to) {
  std::int64_t i = 0;
  for (; i + kW <= n; i += kW) store(to + i, load(from + i));
  if (i >= n) return;
  T lanes[kW] = {};
  for (int j = 0; j < kW && i + j < n; ++j) lanes[j] = from[i + j];
  store(to + i, load(lanes));
}

inline void widen_any(const void* from, std::int64_t at, std::int64_t n, int dtype, float* to) {
  if (dtype == headrace::kF32) return widen(static_cast<const float*>(from) + at, n, to);
  if (dtype == headrace::kBF16) return widen(static_cast<const bf16*>(from) + at, n, to);
  widen(static_cast<const fp16*>(from) + at, n, to);
}

inline float weight_at(const i8* row, const float* scales, int group, std::int64_t at) {
  return static_cast<float>(row[at].value) * scales[at / group];
}
// Blocks of 32 codes in 16 bytes: byte i holds element i below and element i + 16 above.
inline float weight_at(const i4* row, const float* scales, int group, std::int64_t at) {
  const std::int64_t in = at % 32;
  const int pair = row[at / 32 * 16 + in % 16].pair;
  return static_cast<float>((in < 16 ? pair & 15 : pair >> 4) - 8) * scales[at / group];
}

// 16 consecutive weights of one group.
inline void widen_16(const i8* codes, float scale, float* to) {
#if defined(HEADRACE_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  _mm512_storeu_ps(
      to, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), _mm512_set1_ps(scale)));
#elif defined(HEADRACE_AVX2)
  for (int i = 0; i < 16; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i));
    _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                                           _mm256_set1_ps(scale)));
  }
#else
  for (int i = 0; i < 16; ++i) to[i] = static_cast<float>(codes[i].value) * scale;
#endif
}

// One block of 32 weights.
inline void widen_block(const i4* codes, float scale, float* to) {
#if defined(HEADRACE_AVX512)
  // The 16 values that a code can stand for fit one vector: a code is an index.
  const __m512 levels = _mm512_mul_ps(
      _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8), _mm512_set1_ps(scale));
  const __m512i pairs =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  _mm512_storeu_ps(to, _mm512_permutexvar_ps(pairs, levels));
  _mm512_storeu_ps(to + 16, _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), levels));
#elif defined(HEADRACE_AVX2)
  const __m256i low = _mm256_set1_epi32(15), eight = _mm256_set1_epi32(8);
  for (int i = 0; i < 16; i += 8) {
    const __m256i pairs =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
    const __m256i a = _mm256_sub_epi32(_mm256_and_si256(pairs, low), eight);
    const __m256i b = _mm256_sub_epi32(_mm256_srli_epi32(pairs, 4), eight);
    _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_cvtepi32_ps(a), _mm256_set1_ps(scale)));
    _mm256_storeu_ps(to + i + 16, _mm256_mul_ps(_mm256_cvtepi32_ps(b), _mm256_set1_ps(scale)));
  }
#else
  for (int i = 0; i < 16; ++i) {
    to[i] = static_cast<float>((codes[i].pair & 15) - 8) * scale;
    to[i + 16] = static_cast<float>((codes[i].pair >> 4) - 8) * scale;
  }
#endif
}

// Weights [first, first + n) of a row of codes, zeros up to a whole vector behind them.
template <class P>
inline void widen_codes(const P* row, const float* scales, int group, std::int64_t first,
                        std::int64_t n, float* to) {
  constexpr int kStep = std::is_same_v<P, i4> ? 32 : 16;
  std::int64_t i = 0;
  if (group % kStep == 0 && first % kStep == 0) {
    for (; i + kStep <= n; i += kStep) {
      const float scale = scales[(first + i) / group];
      if constexpr (std::is_same_v<P, i4>) {
        widen_block(row + (first + i) / 2, scale, to + i);
      } else {
        widen_16(row + first + i, scale, to + i);
      }
    }
  }
  for (; i < n; ++i) to[i] = weight_at(row, scales, group, first + i);
  for (; i % kW; ++i) to[i] = 0.f;
}

}  // namespace
