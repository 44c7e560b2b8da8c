// SPDX-License-Identifier: Apache-2.0
// Compiled once per ISA level; exports one table.
#include "append.inl.h"
#include "dense.inl.h"
#include "paged.inl.h"

namespace {

void paged(const PagedArgs& a, const PagedItem& it, float* scratch) {
#ifdef HEADRACE_DOTS
  // The result is rounded to bf16 too.
  if (a.q_dtype == headrace::kBF16) {
    if (a.kv_dtype == headrace::kBF16) return paged_block<Paired, bf16>(a, it, scratch);
    if (a.kv_dtype == headrace::kE4M3) return paged_block<Halves, e4m3>(a, it, scratch);
  }
#endif
#ifdef HEADRACE_WHOLE_DOTS
  if (takes_whole(a)) return paged_block<Coded, std::int8_t>(a, it, scratch);
#endif
  if (a.kv_dtype == headrace::kF32) return paged_block<Widened, float>(a, it, scratch);
  if (a.kv_dtype == headrace::kBF16) return paged_block<Widened, bf16>(a, it, scratch);
  if (a.kv_dtype == headrace::kI8) return paged_block<Widened, std::int8_t>(a, it, scratch);
  if (a.kv_dtype == headrace::kE4M3) return paged_block<Widened, e4m3>(a, it, scratch);
  return paged_block<Widened, fp16>(a, it, scratch);
}

}  // namespace

extern "C" const headrace::AttentionKernels HEADRACE_JOIN(headrace_attention_, HEADRACE_LEVEL) = {
    paged, paged_merge, dense, dense_merge, append, merge,
};
