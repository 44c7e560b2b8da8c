// SPDX-License-Identifier: Apache-2.0
// Writing keys and values into pages, and merging two attention states.
#pragma once
#include "append_rows.inl.h"

namespace {

using headrace::MergeArgs;

void append(const AppendArgs& a, std::int64_t begin, std::int64_t end, float* scratch) {
  if (a.page_dtype == headrace::kF32) return append_run<float>(a, begin, end, scratch);
  if (a.page_dtype == headrace::kBF16) return append_run<bf16>(a, begin, end, scratch);
  if (a.page_dtype == headrace::kI8) return append_run<std::int8_t>(a, begin, end, scratch);
  if (a.page_dtype == headrace::kE4M3) return append_run<e4m3>(a, begin, end, scratch);
  return append_run<fp16>(a, begin, end, scratch);
}

// What two states count in their union, of n rows up to kW, and the logarithm of its sum. A state
// of weight 0 may hold anything.
struct Shares {
  float a[kW], b[kW];

  Shares(const float* lse_a, const float* lse_b, int n, float* lse) {
    float top[kW] = {}, sum[kW];
    for (int i = 0; i < kW; ++i) a[i] = b[i] = 0.f;
    for (int i = 0; i < n; ++i) {
      top[i] = lse_a[i] > lse_b[i] ? lse_a[i] : lse_b[i];
      a[i] = (lse_a[i] - top[i]) * kLog2e;
      b[i] = (lse_b[i] - top[i]) * kLog2e;
    }
    const F wa = exp2(load(a)), wb = exp2(load(b)), all = add(wa, wb);
    store(a, div(wa, all));
    store(b, div(wb, all));
    store(sum, all);
    for (int i = 0; i < n; ++i) {
      lse[i] = top[i] + logf(sum[i]);
      if (lse_a[i] == -kInf && lse_b[i] == -kInf) a[i] = b[i] = 0.f, lse[i] = -kInf;
    }
  }
};

template <class T>
inline void merge_rows(const MergeArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; r += kW) {
    const int n = static_cast<int>(end - r < kW ? end - r : kW);
    const Shares shares(a.lse_a + r, a.lse_b + r, n, a.lse + r);
    for (int i = 0; i < n; ++i) {
      const std::int64_t at = (r + i) * a.dim;
      const T *x = static_cast<const T*>(a.o_a) + at, *y = static_cast<const T*>(a.o_b) + at;
      T* o = static_cast<T*>(a.o) + at;
      const F share_a = set1(shares.a[i]), share_b = set1(shares.b[i]);
      if (shares.a[i] != 0.f && shares.b[i] != 0.f) {
        for (int d = 0; d < a.dim; d += kW) {
          store(o + d, fma(load(y + d), share_b, mul(load(x + d), share_a)));
        }
      } else if (shares.a[i] == shares.b[i]) {
        for (int d = 0; d < a.dim; d += kW) store(o + d, zero());
      } else {
        const T* z = shares.a[i] != 0.f ? x : y;
        memcpy(o, z, static_cast<std::size_t>(a.dim) * sizeof(T));
      }
    }
  }
}

void merge(const MergeArgs& a, std::int64_t begin, std::int64_t end) {
  if (a.dtype == headrace::kF32) return merge_rows<float>(a, begin, end);
  if (a.dtype == headrace::kBF16) return merge_rows<bf16>(a, begin, end);
  merge_rows<fp16>(a, begin, end);
}

}  // namespace
