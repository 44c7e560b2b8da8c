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

template <class T>
inline void merge_rows(const MergeArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const float la = a.lse_a[r], lb = a.lse_b[r];
    const float top = la > lb ? la : lb;
    const T* x = static_cast<const T*>(a.o_a) + r * a.dim;
    const T* y = static_cast<const T*>(a.o_b) + r * a.dim;
    T* o = static_cast<T*>(a.o) + r * a.dim;
    if (la == -kInf && lb == -kInf) {
      for (int d = 0; d < a.dim; d += kW) store(o + d, zero());
      a.lse[r] = -kInf;
      continue;
    }
    float weights[kW] = {(la - top) * kLog2e, (lb - top) * kLog2e};
    store(weights, exp2(load(weights)));
    const float wa = la == -kInf ? 0.f : weights[0], wb = lb == -kInf ? 0.f : weights[1];
    const F share_a = set1(wa / (wa + wb)), share_b = set1(wb / (wa + wb));
    // A state of weight 0 may hold anything; it is not read into the sum.
    if ((wa > 0.f || la != la) && (wb > 0.f || lb != lb)) {
      for (int d = 0; d < a.dim; d += kW) {
        store(o + d, fma(load(y + d), share_b, mul(load(x + d), share_a)));
      }
    } else {
      const T* z = wa > 0.f ? x : y;
      const F share = wa > 0.f ? share_a : share_b;
      for (int d = 0; d < a.dim; d += kW) store(o + d, mul(load(z + d), share));
    }
    a.lse[r] = top + logf(wa + wb);
  }
}

void merge(const MergeArgs& a, std::int64_t begin, std::int64_t end) {
  if (a.dtype == headrace::kF32) return merge_rows<float>(a, begin, end);
  if (a.dtype == headrace::kBF16) return merge_rows<bf16>(a, begin, end);
  merge_rows<fp16>(a, begin, end);
}

}  // namespace
