// SPDX-License-Identifier: Apache-2.0
// Tensor cores: a 16 x 16 matrix of 16-bit numbers times a 16 x 8 one, in the fragments of PTX's
// mma.m16n8k16, and what brings numbers into them. Lane l is number t = l % 4 of group g = l / 4.
//   A [16][16]: words (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each with the column
//   after B [16][8]:  words (2t, g), (2t + 8, g), each with the row after C [16][8]:  (g, 2t), (g,
//   2t + 1), (g + 8, 2t), (g + 8, 2t + 1), in fp32
// A row of C depends on that row of A alone, so rows of any origin may share a product.
#pragma once
#include "device.cuh"

namespace headrace {
namespace {

template <class H>
constexpr bool kIsHalf = false;
template <>
constexpr bool kIsHalf<__half> = true;

template <class H>
__device__ inline float number(uint16_t bits) {
  H x;
  memcpy(&x, &bits, 2);
  return widen(x);
}

// c += a b, for H of bf16 or __half.
template <class H>
__device__ inline void multiply_add(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  if constexpr (!kIsHalf<H>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
#else
  emulated_multiply_add(c, a, b0, b1, number<H>);
#endif
}

// Two numbers in the order of memory, rounded to nearest.
template <class H>
__device__ inline uint32_t narrow_pair(float low, float high) {
#ifdef __CUDACC__
  uint32_t pair;
  if constexpr (kIsHalf<H>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  const H pair[2] = {narrow<H>(low), narrow<H>(high)};
  uint32_t bits;
  memcpy(&bits, pair, 4);
  return bits;
#endif
}

// Two numbers as 16 bits each, and what rounding took from them as 16 bits more.
template <class H>
__device__ inline void split_pair(float low, float high, uint32_t* top, uint32_t* rest) {
  *top = narrow_pair<H>(low, high);
  *rest = narrow_pair<H>(low - number<H>(static_cast<uint16_t>(*top)),
                         high - number<H>(static_cast<uint16_t>(*top >> 16)));
}

// a b + c of two pairs of bf16, each rounded once.
__device__ inline uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
  return pair;
#else
  uint32_t pair = 0;
  for (int i = 0; i < 32; i += 16) {
    const auto at = [i](uint32_t x) { return number<bf16>(static_cast<uint16_t>(x >> i)); };
    pair |= static_cast<uint32_t>(narrow<bf16>(fmaf(at(a), at(b), at(c))).bits) << i;
  }
  return pair;
#endif
}

// Element j of two runs of 8 side by side, as 16-bit numbers of a product: floats as they are,
// codes as bf16, exactly.
template <class T>
__device__ inline uint32_t pair_of(const Vec<T, 8>& a, const Vec<T, 8>& b, int j) {
  uint32_t x[4], y[4];
  memcpy(x, &a, 16);
  memcpy(y, &b, 16);
  return __byte_perm(x[j / 2], y[j / 2], j % 2 ? 0x7632 : 0x5410);
}
// Byte j of both, each in one half of a word; the other bytes are not to be read.
__device__ inline uint32_t codes_of(const void* a, const void* b, int j, bool high) {
  uint32_t x[2], y[2];
  memcpy(x, a, 8);
  memcpy(y, b, 8);
  const uint32_t select = j % 4 | (4 + j % 4) << 8;
  return __byte_perm(x[j / 4], y[j / 4], high ? select << 4 : select);
}
// Seven bits of a code are the last of 128, whose steps are of 1; 128 goes, or 256 if negative.
template <>
__device__ inline uint32_t pair_of(const Vec<int8_t, 8>& a, const Vec<int8_t, 8>& b, int j) {
  const uint32_t codes = codes_of(&a, &b, j, false);
  const uint32_t less = (codes & 0x00800080u) | 0x43004300u;
  return fma_pair(less, 0xbf80bf80u, (codes & 0x007f007fu) | 0x43004300u);
}
// In the bits of bf16 a code reads as 2^-120 of its value, subnormals included. Adding one to the
// magnitude 0x7f, and to no other, carries into a bit that becomes all of the exponent: NaN.
template <>
__device__ inline uint32_t pair_of(const Vec<e4m3, 8>& a, const Vec<e4m3, 8>& b, int j) {
  const uint32_t codes = codes_of(&a, &b, j, true);
  const uint32_t magnitude = (codes & 0x7f007f00u) >> 4;
  const uint32_t carry = (magnitude + 0x00100010u) & 0x08000800u;
  const uint32_t bits = (codes & 0x80008000u) | magnitude | ((carry << 4) - carry);
  return fma_pair(bits, 0x7b807b80u, 0x80008000u);
}

}  // namespace
}  // namespace headrace
