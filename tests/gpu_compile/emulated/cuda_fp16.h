// SPDX-License-Identifier: Apache-2.0
// fp16 for the emulated runtime: conversions only, rounding to nearest even.
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }

inline float __half2float(__half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16;
  const int exponent = (h.bits >> 10) & 31;
  const uint32_t fraction = h.bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent > 0) return __uint_as_float(sign | (exponent + 112u) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

inline __half __float2half_rn(float x) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(x) >> 16 & 0x8000);
  const float a = fabsf(x);
  if (!(a == a)) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (a >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent;
  frexpf(a, &exponent);  // a = f 2^exponent, f in [1/2, 1)
  const int unit = (exponent < -13 ? -13 : exponent) - 11;
  const int whole = static_cast<int>(nearbyintf(ldexpf(a, -unit)));
  return {static_cast<uint16_t>(sign + (whole == 0 ? 0 : whole + ((unit + 24) << 10)))};
}
