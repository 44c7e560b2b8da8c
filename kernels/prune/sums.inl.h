// SPDX-License-Identifier: Apache-2.0
// Sums over two rows, one pass over both. Every sum runs over its row in one fixed order, kW lanes
// at a time, and is added up in fp64 from there, so a score knows nothing of other rows.
#pragma once
#include <type_traits>

#include "bytes.inl.h"
#include "csrc/simd/part.h"
#include "finish.h"

namespace {

using headrace::kCos;
using headrace::kDot;
using headrace::kL1;
using headrace::kL2;
using headrace::kSums;
using headrace::SimilarityArgs;

template <int M>
inline void step(F x, F r, F* acc) {
  if (M == kCos) {
    acc[0] = fma(x, r, acc[0]);
    acc[1] = fma(x, x, acc[1]);
    acc[2] = fma(r, r, acc[2]);
  } else if (M == kDot) {
    acc[0] = fma(x, r, acc[0]);
  } else {
    const F d = sub(x, r);
    acc[0] = M == kL1 ? add(acc[0], max(d, sub(zero(), d))) : fma(d, d, acc[0]);
  }
}

template <int M>
constexpr int kTotals = M == kCos ? 3 : 1;

// Sums of n neighbouring elements, in lanes.
template <int M, class X, class R>
inline void lanes_of(const X* x, const R* r, std::int64_t n, F* totals) {
  constexpr int kN = kTotals<M>, kU = M == kCos ? 2 : 4;
  if (n <= kW) {  // the same with nothing in the other sums
    for (int j = 0; j < kN; ++j) totals[j] = zero();
    const int left = static_cast<int>(n);
    if (left == kW) {
      step<M>(load(x), load(r), totals);
    } else {
      step<M>(load_part(x, left), load_part(r, left), totals);
    }
    for (int j = 0; j < kN; ++j) totals[j] = add(totals[j], zero());
    return;
  }
  F acc[kU][kN];
  for (int u = 0; u < kU; ++u) {
    for (int j = 0; j < kN; ++j) acc[u][j] = zero();
  }
  std::int64_t i = 0;
  for (; i + kU * kW <= n; i += kU * kW) {
    for (int u = 0; u < kU; ++u) step<M>(load(x + i + u * kW), load(r + i + u * kW), acc[u]);
  }
  for (; i + kW <= n; i += kW) step<M>(load(x + i), load(r + i), acc[0]);
  if (i < n) {
    const int left = static_cast<int>(n - i);
    step<M>(load_part(x + i, left), load_part(r + i, left), acc[0]);
  }
  for (int j = 0; j < kN; ++j) {
    totals[j] = add(acc[0][j], acc[1][j]);
    if (kU == 4) totals[j] = add(totals[j], add(acc[2 % kU][j], acc[3 % kU][j]));
  }
}

// sums += those of n neighbouring elements.
template <int M, class X, class R>
inline void run(const X* x, const R* r, std::int64_t n, double* sums) {
  F totals[kTotals<M>];
  lanes_of<M>(x, r, n, totals);
  for (int j = 0; j < kTotals<M>; ++j) sums[j] += hsum(totals[j]);
}
template <>
inline void run<kL1, u8, u8>(const u8* x, const u8* r, std::int64_t n, double* sums) {
  if (n > 0) sums[0] += static_cast<double>(apart({x, r, n, n, n, 1}, 0, n));
}

template <int M, class X, class R>
inline float score_of(const SimilarityArgs& a, const X* x, const R* r) {
  double sums[kSums] = {};
  run<M>(x, r, a.depth, sums);
  return similarity_of(a, sums, static_cast<double>(a.depth));
}

}  // namespace
