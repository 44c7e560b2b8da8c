// SPDX-License-Identifier: Apache-2.0
// The level that every machine has: four lanes in plain C++, which the compiler maps to the
// baseline vector unit (SSE2, NEON) or to scalars.
#pragma once
#include <cmath>
#include <cstring>

#include "types.h"

namespace {

using headrace::bf16;
using headrace::e4m3;
using headrace::fp16;

struct F {
  static constexpr int width = 4;
  static constexpr int registers = 16;
  float v[4];
};

inline float from_bits(std::uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline std::uint32_t to_bits(float f) {
  std::uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float widen(bf16 h) { return from_bits(static_cast<std::uint32_t>(h.bits) << 16); }
inline float widen(fp16 h) {
  const std::uint32_t sign = (h.bits & 0x8000u) << 16, exponent = (h.bits >> 10) & 31u;
  const std::uint32_t fraction = h.bits & 0x3ffu;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {
    const float tiny = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}
inline float widen(e4m3 c) {
  const std::uint32_t sign = (c.bits & 0x80u) << 24, magnitude = c.bits & 0x7fu;
  if (magnitude == 0x7f) return from_bits(sign | 0x7fc00000u);
  if (magnitude < 8) {
    const float tiny = static_cast<float>(magnitude) * 0x1p-9f;
    return sign ? -tiny : tiny;
  }
  return from_bits(sign | ((magnitude + (120 << 3)) << 20));
}
inline bf16 to_bf16(float f) {
  const std::uint32_t u = to_bits(f);
  if (f != f) return {static_cast<std::uint16_t>((u | 0x00400000u) >> 16)};
  return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
inline fp16 to_fp16(float f) {
  const std::uint32_t u = to_bits(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) {
    return {static_cast<std::uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu))};
  }
  if (a >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (a < 0x38800000u) {  // subnormal: adding 0.5 aligns the fraction and rounds to nearest even
    return {static_cast<std::uint16_t>(sign | (to_bits(from_bits(a) + 0.5f) - 0x3f000000u))};
  }
  return {static_cast<std::uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13))};
}

template <class Op>
inline F lanes(Op op) {
  F r;
  for (int i = 0; i < 4; ++i) r.v[i] = op(i);
  return r;
}
inline F zero() { return {{0, 0, 0, 0}}; }
inline F set1(float x) { return {{x, x, x, x}}; }
// From any address, as the vectors of other levels: rows of bytes are moved by it too.
inline F load(const float* p) {
  F r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
inline F load(const bf16* p) {
  return lanes([&](int i) { return widen(p[i]); });
}
inline F load(const fp16* p) {
  return lanes([&](int i) { return widen(p[i]); });
}
inline F load(const std::int8_t* p) {
  return lanes([&](int i) { return static_cast<float>(p[i]); });
}
inline F load_small(const e4m3* p) {
  return lanes([&](int i) { return widen(p[i]) * 0x1p-8f; });
}
inline void load_small_pair(const e4m3* p, F* out) {
  out[0] = load_small(p);
  out[1] = load_small(p + F::width);
}
inline void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
inline void store(bf16* p, F a) {
  for (int i = 0; i < 4; ++i) p[i] = to_bf16(a.v[i]);
}
inline void store(fp16* p, F a) {
  for (int i = 0; i < 4; ++i) p[i] = to_fp16(a.v[i]);
}
inline F add(F a, F b) {
  return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline F sub(F a, F b) {
  return lanes([&](int i) { return a.v[i] - b.v[i]; });
}
inline F mul(F a, F b) {
  return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
inline F div(F a, F b) {
  return lanes([&](int i) { return a.v[i] / b.v[i]; });
}
inline F fma(F a, F b, F c) {
  return lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
// A NaN in the second operand survives.
inline F max(F a, F b) {
  return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F min(F a, F b) {
  return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F round(F a) {  // for |a| < 2^22, which is all that the kernels ask of it
  return lanes([&](int i) { return (a.v[i] + 12582912.f) - 12582912.f; });
}
// x * 2^n for integral n; below 2^-126 it underflows to 0.
inline F scale2(F x, F n) {
  return lanes([&](int i) {
    if (!(n.v[i] >= -126.f)) return n.v[i] != n.v[i] ? n.v[i] : 0.f;
    const int e = static_cast<int>(n.v[i]) + 127;
    return x.v[i] * from_bits(static_cast<std::uint32_t>(e) << 23);
  });
}
// Lanes i with lo <= i < hi keep a, the others take b.
inline F keep(F a, F b, int lo, int hi) {
  return lanes([&](int i) { return i >= lo && i < hi ? a.v[i] : b.v[i]; });
}
inline float hsum(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline void hsum4(const F* a, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = hsum(a[i]);
}
inline void hsum8(const F* a, float* out) {
  for (int i = 0; i < 8; i += 4) hsum4(a + i, out + i);
}
inline void hsum16(const F* a, float* out) {
  for (int i = 0; i < 16; i += 4) hsum4(a + i, out + i);
}
inline float hmax(F a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}
// rows[i] holds row i of a 4 x 4 block; afterwards rows[i] holds column i.
inline void transpose(F rows[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const float t = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = t;
    }
  }
}

}  // namespace
