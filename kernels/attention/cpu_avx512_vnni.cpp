// SPDX-License-Identifier: Apache-2.0
// Pages of int8 by whole numbers; all else is what AVX-512 has, and is not compiled again.
#define HEADRACE_AVX512_VNNI
#include "paged.inl.h"

namespace {

using headrace::AppendArgs;
using headrace::DenseArgs;
using headrace::DenseItem;
using headrace::MergeArgs;

const headrace::AttentionKernels& below = headrace_attention_avx512;

void paged(const PagedArgs& a, const PagedItem& it, float* scratch) {
  if (takes_whole(a)) return paged_block<Coded, std::int8_t>(a, it, scratch);
  below.paged(a, it, scratch);
}
void dense(const DenseArgs& a, const DenseItem& it, float* scratch) { below.dense(a, it, scratch); }
void dense_merge(const DenseArgs& a, const DenseItem& it) { below.dense_merge(a, it); }
void append(const AppendArgs& a, std::int64_t begin, std::int64_t end, float* scratch) {
  below.append(a, begin, end, scratch);
}
void merge(const MergeArgs& a, std::int64_t begin, std::int64_t end) { below.merge(a, begin, end); }

}  // namespace

extern "C" const headrace::AttentionKernels HEADRACE_JOIN(headrace_attention_, HEADRACE_LEVEL) = {
    paged, paged_merge, dense, dense_merge, append, merge,
};
