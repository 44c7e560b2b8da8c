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

void merge(const MergeArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const float la = a.lse_a[r], lb = a.lse_b[r];
    const float top = la > lb ? la : lb;
    if (la == -kInf && lb == -kInf) {
      for (int d = 0; d < a.dim; d += kW) store_any(a.o, r * a.dim + d, a.dtype, zero());
      a.lse[r] = -kInf;
      continue;
    }
    const float wa = exp2_one((la - top) * kLog2e), wb = exp2_one((lb - top) * kLog2e);
    const float share = 1.f / (wa + wb);
    // A state of weight 0 may hold anything; it is not read into the sum.
    const bool has_a = wa > 0.f || la != la, has_b = wb > 0.f || lb != lb;
    for (int d = 0; d < a.dim; d += kW) {
      const std::int64_t at = r * a.dim + d;
      F sum = zero();
      if (has_a) sum = mul(load_any(a.o_a, at, a.dtype), set1(wa * share));
      if (has_b) sum = fma(load_any(a.o_b, at, a.dtype), set1(wb * share), sum);
      store_any(a.o, at, a.dtype, sum);
    }
    a.lse[r] = top + static_cast<float>(log(static_cast<double>(wa) + static_cast<double>(wb)));
  }
}

}  // namespace
