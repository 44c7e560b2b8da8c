// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b. Each output is one dot product, added up in one fixed order: kW running sums over
// the depth, then a fixed tree. No output knows how many rows there are, which is what makes the
// product batch-invariant; register blocking changes which dots run together and nothing else.
#pragma once
#include "args.h"
#include "csrc/simd/vec.h"

namespace {

using headrace::LinearArgs;

constexpr int kM = F::registers == 32 ? 4 : 3;
constexpr int kN = F::registers == 32 ? 6 : 3;

inline float narrow_load(const void* p, std::int64_t i, int dtype) {
  float one[kW];
  if (dtype == headrace::kF32) return static_cast<const float*>(p)[i];
  if (dtype == headrace::kBF16) {
    bf16 h[kW] = {static_cast<const bf16*>(p)[i]};
    store(one, load(h));
  } else {
    fp16 h[kW] = {static_cast<const fp16*>(p)[i]};
    store(one, load(h));
  }
  return one[0];
}
inline void narrow_store(void* p, std::int64_t i, int dtype, float value) {
  if (dtype == headrace::kF32) {
    static_cast<float*>(p)[i] = value;
  } else if (dtype == headrace::kBF16) {
    bf16 h[kW];
    store(h, set1(value));
    static_cast<bf16*>(p)[i] = h[0];
  } else {
    fp16 h[kW];
    store(h, set1(value));
    static_cast<fp16*>(p)[i] = h[0];
  }
}

// The last depth % kW elements, as a full vector with zeros behind.
template <class T>
inline F load_tail(const T* p, int left) {
  T lanes[kW] = {};
  for (int i = 0; i < left; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <int M, int N, class X, class W>
inline void dots(const LinearArgs& a, const X* x, const W* w, std::int64_t row, std::int64_t col) {
  F acc[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = zero();
  }
  std::int64_t k = 0;
  for (; k + kW <= a.depth; k += kW) {
    F xs[M];
    for (int m = 0; m < M; ++m) xs[m] = load(x + m * a.x_row + k);
    for (int n = 0; n < N; ++n) {
      const F y = load(w + n * a.w_row + k);
      for (int m = 0; m < M; ++m) acc[m][n] = fma(xs[m], y, acc[m][n]);
    }
  }
  if (k < a.depth) {
    const int left = static_cast<int>(a.depth - k);
    for (int n = 0; n < N; ++n) {
      const F y = load_tail(w + n * a.w_row + k, left);
      for (int m = 0; m < M; ++m)
        acc[m][n] = fma(load_tail(x + m * a.x_row + k, left), y, acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      float sum = hsum(acc[m][n]);
      if (a.bias) sum += narrow_load(a.bias, col + n, a.w_dtype);
      narrow_store(a.y, (row + m) * a.outputs + col + n, a.x_dtype, sum);
    }
  }
}

template <int M, class X, class W>
inline void columns(const LinearArgs& a, std::int64_t row, std::int64_t col, int cols) {
  const X* x = static_cast<const X*>(a.x) + row * a.x_row;
  const W* w = static_cast<const W*>(a.weight) + col * a.w_row;
  if (cols == kN) return dots<M, kN>(a, x, w, row, col);
  for (int n = 0; n < cols; ++n) dots<M, 1>(a, x, w + n * a.w_row, row, col + n);
}

template <class X, class W>
inline void block(const LinearArgs& a, std::int64_t begin, std::int64_t end, std::int64_t first,
                  std::int64_t last) {
  for (std::int64_t n = first; n < last; n += kN) {
    const int cols = static_cast<int>(last - n < kN ? last - n : kN);
    std::int64_t t = begin;
    for (; t + kM <= end; t += kM) columns<kM, X, W>(a, t, n, cols);
    for (; t < end; ++t) columns<1, X, W>(a, t, n, cols);
  }
}

template <class X>
inline void by_weight(const LinearArgs& a, std::int64_t begin, std::int64_t end, std::int64_t first,
                      std::int64_t last) {
  if (a.w_dtype == headrace::kF32) return block<X, float>(a, begin, end, first, last);
  if (a.w_dtype == headrace::kBF16) return block<X, bf16>(a, begin, end, first, last);
  return block<X, fp16>(a, begin, end, first, last);
}

void linear(const LinearArgs& a, std::int64_t begin, std::int64_t end, std::int64_t first,
            std::int64_t last) {
  if (a.x_dtype == headrace::kF32) return by_weight<float>(a, begin, end, first, last);
  if (a.x_dtype == headrace::kBF16) return by_weight<bf16>(a, begin, end, first, last);
  return by_weight<fp16>(a, begin, end, first, last);
}

}  // namespace

extern "C" const headrace::LinearKernels HEADRACE_JOIN(headrace_linear_, HEADRACE_LEVEL) = {linear};
