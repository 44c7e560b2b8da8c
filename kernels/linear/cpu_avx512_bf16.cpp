// SPDX-License-Identifier: Apache-2.0
// Rows of x of bf16; all else is what AVX-512 has, and is not compiled again.
#define HEADRACE_AVX512_BF16
#include "cpu.inl.h"

namespace {

using Kernels = headrace::LinearKernels;
using Packed = headrace::LinearPacked;

const Kernels& below = headrace_linear_avx512;

template <auto own, class... More>
void of_bf16(const LinearArgs& a, More... more) {
  if (a.x_dtype == headrace::kBF16) return own(a, more...);
  below.linear(a, more...);
}
template <auto own, auto layout, auto step, class... More>
void of_bf16(const LinearArgs& a, More... more) {
  if (a.x_dtype == headrace::kBF16) return own(a, more...);
  (below.*layout.*step)(a, more...);
}

}  // namespace

extern "C" const Kernels HEADRACE_JOIN(headrace_linear_, HEADRACE_LEVEL) = {
    of_bf16<linear>,
    {of_bf16<columns, &Kernels::columns, &Packed::multiply>,
     of_bf16<pack_columns, &Kernels::columns, &Packed::pack>},
    {of_bf16<quarters, &Kernels::quarters, &Packed::multiply>,
     of_bf16<pack_quarters, &Kernels::quarters, &Packed::pack>},
    true,
};
