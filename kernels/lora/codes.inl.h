// SPDX-License-Identifier: Apache-2.0
// Weights out of a pool as fp32: floats are widened, codes are multiplied by their group's scale.
#pragma once
#include <string.h>

#include <type_traits>

#include "csrc/simd/products.h"

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

// bf16 adapters of bf16 rows, where these are multiplied in pairs. The bridge between the halves
// comes as two bf16 then, its value and what rounding lost.
#ifdef HEADRACE_DOTS
struct paired : bf16 {};
#endif
template <class P>
struct Multiplied {
  using Lanes = ::Lanes<float, P>;
};
#ifdef HEADRACE_DOTS
template <>
struct Multiplied<paired> {
  using Lanes = ::Lanes<bf16, bf16>;
};
#endif
template <class P>
using LanesOf = typename Multiplied<P>::Lanes;
template <class P>
using Packed = typename LanesOf<P>::Packed;  // of x
// Elements of x that are taken at a time.
template <class T>
constexpr int kChunk = headrace::kLoraChunk / static_cast<int>(sizeof(T));

// body(m, rows) for blocks of `Most` tokens and what is left, `rows` a constant.
template <int Most, class Body>
inline void in_rows(int m, int count, const Body& body) {
  for (; m + Most <= count; m += Most) body(m, std::integral_constant<int, Most>{});
  if constexpr (Most > 1) {
    if (m < count) in_rows<Most - 1>(m, count, body);
  }
}

constexpr int kBlock = 32;         // what is taken at a time, and codes of a block
constexpr int kPer = kBlock / kW;  // vectors of these

// Blocks of many tokens.
constexpr int kM = F::registers == 32 ? 4 : 2;     // tokens that are no longer few
constexpr int kRows = F::registers == 32 ? 6 : 3;  // tokens of a register block
constexpr int kColumns = 4;                        // vectors of output columns at a time
constexpr int kWide = kColumns * kW;               // columns
constexpr int kDeep = 128;                         // rank rows that are widened at a time
constexpr int kStripWords = 4096;                  // of widened columns: half of a first cache
constexpr int kStripMost = 512;                    // columns

inline std::int64_t padded(std::int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

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

inline const char* at_row(const void* p, std::int64_t at, int dtype) {
  return static_cast<const char*>(p) + at * headrace::dtype_size(dtype);
}

// Elements of x, with zeros up to padded(n).
__attribute__((noinline)) void take_any(const void* from, std::int64_t at, std::int64_t n,
                                        int dtype, float* to) {
  widen_any(from, at, n, dtype, to);
  for (std::int64_t i = (n + kW - 1) / kW * kW; i < padded(n); ++i) to[i] = 0.f;
}
#ifdef HEADRACE_DOTS
inline void take_any(const void* from, std::int64_t at, std::int64_t n, int, bf16* to) {
  const bf16* x = static_cast<const bf16*>(from) + at;
  std::int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) store_pairs(to + i, load_pairs(x + i));
  memcpy(to + i, x + i, (n - i) * sizeof(bf16));
  memset(to + n, 0, (padded(n) - n) * sizeof(bf16));
}
#endif

// Blocks of 32 codes: those of i4 take 16 bytes, byte i holds element i below and i + 16 above.
inline const i8* codes_at(const i8* row, std::int64_t at) { return row + at; }
inline const i4* codes_at(const i4* row, std::int64_t at) { return row + at / 2; }
inline float code_at(const i8* row, std::int64_t at) { return row[at].value; }
inline float code_at(const i4* row, std::int64_t at) {
  const std::int64_t in = at % kBlock;
  const int pair = row[at / kBlock * 16 + in % 16].pair;
  return static_cast<float>((in < 16 ? pair & 15 : pair >> 4) - 8);
}

// What the codes of one group are turned into weights by: always code times scale, rounded once.
struct Unit {
  F by, shift;
};

inline Unit unit_of(const i8*, float scale) { return {set1(scale), zero()}; }
inline Unit unit_of(const i4*, float scale) {
#if defined(HEADRACE_AVX512)
  // The 16 weights that a code can stand for fit one vector: a code is an index.
  const __m512 levels = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  return {mul({levels}, set1(scale)), zero()};
#else
  return {set1(scale), set1(-8.f * scale)};
#endif
}

// The 32 weights of a block of one group.
inline void weights(const i8* at, const Unit& unit, F* w) {
#if defined(HEADRACE_AVX512) || defined(HEADRACE_AVX2)
  for (int i = 0; i < kPer; ++i) {
    w[i] = mul(load(reinterpret_cast<const std::int8_t*>(at) + i * kW), unit.by);
  }
#else
  float codes[kBlock];
  for (int i = 0; i < kBlock; ++i) codes[i] = code_at(at, i);
  for (int i = 0; i < kPer; ++i) w[i] = mul(load(codes + i * kW), unit.by);
#endif
}
inline void weights(const i4* at, const Unit& unit, F* w) {
#if defined(HEADRACE_AVX512)
  const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  w[0] = {_mm512_permutexvar_ps(pairs, unit.by.v)};  // looks at four bits of an index
  w[1] = {_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), unit.by.v)};
#elif defined(HEADRACE_AVX2)
  // c s - 8 s, rounded once, is (c - 8) s, rounded once.
  const __m256i low = _mm256_set1_epi32(15);
  for (int i = 0; i < 2; ++i) {
    const __m256i pairs =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at + i * 8)));
    w[i] = fma({_mm256_cvtepi32_ps(_mm256_and_si256(pairs, low))}, unit.by, unit.shift);
    w[i + 2] = fma({_mm256_cvtepi32_ps(_mm256_srli_epi32(pairs, 4))}, unit.by, unit.shift);
  }
#else
  float codes[kBlock];
  for (int i = 0; i < kBlock; ++i) codes[i] = code_at(at, i);
  for (int i = 0; i < kPer; ++i) w[i] = mul(load(codes + i * kW), unit.by);
#endif
}

// Weights [first, first + n) of a row of codes, zeros up to a whole vector behind them.
template <class P>
inline void widen_codes(const P* row, const float* scales, int group, std::int64_t first,
                        std::int64_t n, float* to) {
  const std::int64_t end = first + n;
  std::int64_t at = first, g = first / group;
  for (; at < end; ++g) {
    const std::int64_t stop = (g + 1) * group < end ? (g + 1) * group : end;
    if (at % kBlock == 0 && at + kBlock <= stop) {
      const Unit unit = unit_of(row, scales[g]);
      for (; at + kBlock <= stop; at += kBlock) {
        F w[kPer];
        weights(codes_at(row, at), unit, w);
        for (int i = 0; i < kPer; ++i) store(to + at - first + i * kW, w[i]);
      }
    }
    for (; at < stop; ++at) to[at - first] = code_at(row, at) * scales[g];
  }
  for (std::int64_t i = n; i % kW; ++i) to[i] = 0.f;
}

}  // namespace
