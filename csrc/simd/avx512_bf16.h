// SPDX-License-Identifier: Apache-2.0
// AVX512-BF16 on top of AVX-512: dot products of pairs of bf16, two multiply-adds a lane. A product
// of two bf16 is exact in fp32 and the sums are fp32; subnormals count as zero.
#pragma once
#include "avx512.h"

#define HEADRACE_DOTS

namespace {

// 16 lanes of two bf16: the even element in the low half.
struct Pairs {
  __m512i v;
};

inline Pairs load_pairs(const void* p) { return {_mm512_loadu_si512(p)}; }
// Both elements at p, in every lane.
inline Pairs set1_pair(const void* p) {
  int both;
  __builtin_memcpy(&both, p, 4);
  return {_mm512_set1_epi32(both)};
}
inline F dot(Pairs a, Pairs b, F c) {
  return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

}  // namespace
