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

// Bytes of a packed row that a pass over the depth takes. Between two passes the unfinished sums
// wait in scratch, so one pass is better as long as a block of rows fits a second-level cache.
constexpr std::int64_t kLinearDeep = 16384;
// Words of a row, packed for a pass.
inline constexpr std::int64_t linear_words(std::int64_t depth) {
  return depth < kLinearDeep / 4 ? (depth + 31) / 32 * 32 : kLinearDeep / 4;
}

struct LinearKernels {
  // y[begin:end, first:last]. scratch: linear_words for every row, 12 rows at least, and where the
  // depth is more than that, 16 for every row and output, the outputs rounded up to 8.
  void (*linear)(const LinearArgs&, std::int64_t begin, std::int64_t end, std::int64_t first,
                 std::int64_t last, float* scratch);
};

}  // namespace headrace

HEADRACE_TABLES(LinearKernels, linear)
