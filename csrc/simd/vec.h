// SPDX-License-Identifier: Apache-2.0
// The vector layer of the level that the including file is compiled for, and the few functions
// that are the same on all of them. Everything here has internal linkage: a weak copy compiled for
// AVX-512 must never be the one that the linker keeps for everybody.
#pragma once
#if defined(HEADRACE_AVX512)
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

// 2^x for x <= 0 (and a little above); relative error below 2e-7, NaN survives.
inline F exp2(F x) {
  x = max(set1(-150.f), x);
  const F n = round(x);
  const F f = sub(x, n);
  F p = set1(1.5353362e-4f);
  p = fma(p, f, set1(1.3398874e-3f));
  p = fma(p, f, set1(9.6184373e-3f));
  p = fma(p, f, set1(5.5503324e-2f));
  p = fma(p, f, set1(2.4022648e-1f));
  p = fma(p, f, set1(6.9314718e-1f));
  p = fma(p, f, set1(1.f));
  return scale2(p, n);
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
