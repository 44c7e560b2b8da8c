// SPDX-License-Identifier: Apache-2.0
// Weighted means of rows: a strip of columns stays in registers while its rows pass by in order.
#pragma once
#include <type_traits>

#include "args.h"
#include "csrc/simd/part.h"
#include "csrc/simd/vec.h"

namespace {

template <class T>
void blend_of(const T* x, std::int64_t row_stride, const std::int32_t* rows, const float* weights,
              std::int64_t count, float total, std::int64_t depth, T* out) {
  constexpr int kN = 4;
  const F sum = set1(total);
  std::int64_t d = 0;
  for (; d + kN * kW <= depth; d += kN * kW) {
    F acc[kN];
    for (int n = 0; n < kN; ++n) acc[n] = zero();
    for (std::int64_t i = 0; i < count; ++i) {
      const F w = set1(weights[i]);
      const T* row = x + rows[i] * row_stride + d;
      for (int n = 0; n < kN; ++n) acc[n] = fma(w, load(row + n * kW), acc[n]);
    }
    for (int n = 0; n < kN; ++n) store(out + d + n * kW, div(acc[n], sum));
  }
  for (; d + kW <= depth; d += kW) {
    F acc = zero();
    for (std::int64_t i = 0; i < count; ++i) {
      acc = fma(set1(weights[i]), load(x + rows[i] * row_stride + d), acc);
    }
    store(out + d, div(acc, sum));
  }
  if (d == depth) return;
  const int left = static_cast<int>(depth - d);
  F acc = zero();
  for (std::int64_t i = 0; i < count; ++i) {
    acc = fma(set1(weights[i]), load_part(x + rows[i] * row_stride + d, left), acc);
  }
  store_part(out + d, div(acc, sum), left);
}

void blend(const void* x, std::int64_t row_stride, const std::int32_t* rows, const float* weights,
           std::int64_t count, float total, std::int64_t depth, int dtype, void* out) {
  const auto go = [&](auto* p) {
    using T = std::remove_pointer_t<decltype(p)>;
    blend_of(static_cast<const T*>(x), row_stride, rows, weights, count, total, depth,
             static_cast<T*>(out));
  };
  if (dtype == headrace::kF32) return go(static_cast<float*>(nullptr));
  if (dtype == headrace::kBF16) return go(static_cast<bf16*>(nullptr));
  go(static_cast<fp16*>(nullptr));
}

}  // namespace
