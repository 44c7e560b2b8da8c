// SPDX-License-Identifier: Apache-2.0
// The vector layer of the level that the including file is compiled for, and the few functions
// that are the same on all of them. Everything here has internal linkage: a weak copy compiled for
// AVX-512 must never be the one that the linker keeps for everybody.
#pragma once
#include <cstring>

#if defined(HEADRACE_AVX512_BF16)
#define HEADRACE_AVX512  // what that level has, this one has
#include "avx512_bf16.h"
#define HEADRACE_LEVEL avx512_bf16
#elif defined(HEADRACE_AVX512_VNNI)
#define HEADRACE_AVX512
#include "avx512_vnni.h"
#define HEADRACE_LEVEL avx512_vnni
#elif defined(HEADRACE_AVX512)
#include "avx512.h"
#define HEADRACE_LEVEL avx512
#elif defined(HEADRACE_AVX2)
#include "avx2.h"
#define HEADRACE_LEVEL avx2
#else
#include "scalar.h"
#define HEADRACE_LEVEL scalar
#endif

// HEADRACE_JOIN(name_, HEADRACE_LEVEL): what a family exports for the level.
#define HEADRACE_JOIN_(a, b) a##b
#define HEADRACE_JOIN(a, b) HEADRACE_JOIN_(a, b)

namespace {

constexpr int kW = F::width;

// x = 2^x for x <= 0 (and a little above), of N vectors; relative error below 2e-7, NaN survives.
// Steps are taken for all vectors in turn, since each waits for the one before.
template <int N>
inline void exp2(F* x) {
  constexpr float terms[] = {1.3398874e-3f, 9.6184373e-3f, 5.5503324e-2f,
                             2.4022648e-1f, 6.9314718e-1f, 1.f};
  F n[N], p[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    x[i] = max(set1(-150.f), x[i]);
    n[i] = round(x[i]);
    x[i] = sub(x[i], n[i]);
    p[i] = set1(1.5353362e-4f);
  }
#pragma GCC unroll 8
  for (float term : terms) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) p[i] = fma(p[i], x[i], set1(term));
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) x[i] = scale2(p[i], n[i]);
}
inline F exp2(F x) {
  exp2<1>(&x);
  return x;
}

// N vectors of a row, widened; those of e4m3 come as 2^-8 of their value, which saves a product for
// each: kRowUnit puts it right where something else is multiplied anyway.
template <int N, class T>
inline void load_row(const T* p, F* out) {
  for (int n = 0; n < N; ++n) out[n] = load(p + n * kW);
}
template <int N>
inline void load_row(const e4m3* p, F* out) {
  for (int n = 0; n + 1 < N; n += 2) load_small_pair(p + n * kW, out + n);
  if (N % 2) out[N - 1] = load_small(p + (N - 1) * kW);
}
template <class T>
constexpr float kRowUnit = 1.f;
template <>
constexpr float kRowUnit<e4m3> = 256.f;

// To the nearest whole number, ties to even, no further than 127; NaN becomes 0.
inline void store(std::int8_t* p, F a) {
  float x[kW];
  store(x, round(min(set1(127.f), max(set1(-127.f), a))));
  for (int i = 0; i < kW; ++i) p[i] = static_cast<std::int8_t>(x[i] == x[i] ? x[i] : 0.f);
}

// To the nearest code, ties to even, no further than 448; infinities become NaN.
inline std::uint8_t e4m3_code(float f) {
  std::uint32_t u, low;
  std::memcpy(&u, &f, 4);
  const std::uint32_t sign = (u >> 24) & 0x80u, a = u & 0x7fffffffu;
  std::memcpy(&f, &a, 4);
  f += 24576.f;  // the last bit of the sum counts 2^-9, the smallest code
  std::memcpy(&low, &f, 4);
  const std::uint32_t normal = ((a + 0x7ffffu + ((a >> 20) & 1u)) >> 20) - (120u << 3);
  std::uint32_t code = a < 0x3c800000u ? low & 0xfu : normal;
  code = a > 0x43e00000u ? 0x7eu : code;
  code = a >= 0x7f800000u ? 0x7fu : code;
  return static_cast<std::uint8_t>(sign | code);
}
inline void store(e4m3* p, F a) {
  float x[kW];
  store(x, a);
  for (int i = 0; i < kW; ++i) p[i].bits = e4m3_code(x[i]);
}

inline void store_any(void* p, std::int64_t index, int dtype, F a) {
  if (dtype == headrace::kF32) {
    store(static_cast<float*>(p) + index, a);
  } else if (dtype == headrace::kBF16) {
    store(static_cast<bf16*>(p) + index, a);
  } else {
    store(static_cast<fp16*>(p) + index, a);
  }
}
inline F load_any(const void* p, std::int64_t index, int dtype) {
  if (dtype == headrace::kF32) return load(static_cast<const float*>(p) + index);
  if (dtype == headrace::kBF16) return load(static_cast<const bf16*>(p) + index);
  return load(static_cast<const fp16*>(p) + index);
}

}  // namespace
