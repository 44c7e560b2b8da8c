// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

struct LinearArgs {
  const void* x;       // [T, K], rows of stride x_row
  const void* weight;  // [N, K], rows of stride w_row
  const void* bias;    // [N] or null
  void* y;             // [T, N] contiguous
  std::int64_t tokens, outputs, depth, x_row, w_row;
  int x_dtype, w_dtype;  // bias has the dtype of the weight, y that of x
};

struct LinearKernels {
  // y[begin:end, first:last]
  void (*linear)(const LinearArgs&, std::int64_t begin, std::int64_t end, std::int64_t first,
                 std::int64_t last);
};

}  // namespace headrace

extern "C" {
extern const headrace::LinearKernels headrace_linear_scalar;
extern const headrace::LinearKernels headrace_linear_avx2;
extern const headrace::LinearKernels headrace_linear_avx512;
}
