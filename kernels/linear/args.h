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

// How a level takes many rows, if it has these ways: as columns where the depth is short, in slabs
// where it is not. Fewer rows would not pay for what either of them packs.
enum class LinearWay { kRows, kColumns, kSlabs };
constexpr std::int64_t kLinearShort = 512;
inline LinearWay linear_way(const LinearArgs& a) {
  if (a.depth > kLinearShort) {
    return a.tokens >= (a.w_dtype == kF32 ? 64 : 48) ? LinearWay::kSlabs : LinearWay::kRows;
  }
  return a.tokens >= 32 && a.depth >= 128 ? LinearWay::kColumns : LinearWay::kRows;
}
// Depth of a slab: rows of a block and weights of a few outputs fit a first-level cache.
inline std::int64_t linear_slab(std::int64_t depth) {
  constexpr std::int64_t kMost = 768;
  const std::int64_t slabs = (depth + kMost - 1) / kMost;
  return slabs ? ((depth + slabs - 1) / slabs + 15) / 16 * 16 : 0;
}

// Words that columns or slabs need for a strip of outputs.
inline std::int64_t linear_room(const LinearArgs& a, std::int64_t strip) {
  const std::int64_t padded = (a.depth + 15) / 16 * 16;
  if (a.depth <= kLinearShort) return (48 + (a.w_dtype == kF32 ? 0 : strip)) * padded;
  return strip * padded + 6 * (linear_slab(a.depth) + (strip + 7) / 8 * 8 * 16);
}

struct LinearKernels {
  // y[begin:end, first:last]. scratch: linear_words for every row, 12 rows at least, and where the
  // depth is more than that, 16 for every row and output, the outputs rounded up to 8; where the
  // level has ways for many rows, as many as linear_room says.
  void (*linear)(const LinearArgs&, std::int64_t begin, std::int64_t end, std::int64_t first,
                 std::int64_t last, float* scratch);
  bool ways;  // whether the level takes many rows as linear_way says
};

}  // namespace headrace

HEADRACE_TABLES(LinearKernels, linear)
