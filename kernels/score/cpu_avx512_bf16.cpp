// SPDX-License-Identifier: Apache-2.0
// Rows of bf16; all else is what AVX-512 has, and is not compiled again.
#define HEADRACE_AVX512_BF16
#include "assign.inl.h"
#include "block.inl.h"
#include "mass.inl.h"

namespace {

using Kernels = headrace::ScoreKernels;

template <auto own, auto other, class Args, class... More>
void of_bf16(const Args& a, More... more) {
  if (a.dtype == headrace::kBF16) return own(a, more...);
  (headrace_score_avx512.*other)(a, more...);
}
void segment(const headrace::SegmentArgs& a, std::int64_t segment, int first, int last,
             const std::int32_t* rows, std::int64_t n) {
  headrace_score_avx512.segment(a, segment, first, last, rows, n);
}

}  // namespace

extern "C" const Kernels HEADRACE_JOIN(headrace_score_, HEADRACE_LEVEL) = {
    of_bf16<fold, &Kernels::fold>,
    of_bf16<blocks, &Kernels::blocks>,
    segment,
    of_bf16<mass_queries, &Kernels::mass_queries>,
    of_bf16<mass_sums, &Kernels::mass_sums>,
    of_bf16<mass, &Kernels::mass>,
    of_bf16<candidates, &Kernels::candidates>,
    of_bf16<assign, &Kernels::assign>,
};
