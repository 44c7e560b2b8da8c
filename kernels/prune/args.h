// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

constexpr int kU8 = 5;  // after those of DType

enum Metric : int { kCos = 0, kDot = 1, kL1 = 2, kL2 = 3, kGauss = 4 };

// Grids of rows: x [frames, height, width, depth], the reference the same or with stride 0 along
// what it has once. Strides in elements; the last axis has stride 1.
struct SimilarityArgs {
  const void* x;
  const void* ref;
  const std::int32_t* segments;  // [frames, height, width] rows of the reference, or null
  float* out;                    // [frames, out_height, out_width] contiguous
  std::int64_t x_strides[3], ref_strides[3], segment_strides[3];
  std::int64_t frames, height, width, depth;
  std::int64_t patch_height, patch_width, out_height, out_width;
  std::int64_t ref_rows;  // with segments: how many, of stride ref_strides[2]
  std::int64_t radius;    // of the neighbourhood, 0 for the row in place alone
  double alpha;
  int metric, x_dtype, ref_dtype;
};

// What a metric is made of: for cos x.r, x.x, r.r; for the others one sum.
constexpr int kSums = 3;

struct PruneKernels {
  // Scores of rows [first, last) of the flattened grid, one row to a patch.
  void (*rows)(const SimilarityArgs&, std::int64_t first, std::int64_t last);
  // Adds the sums of rows [y, y_end) of the grid to [out_width][kSums], a patch each.
  void (*patches)(const SimilarityArgs&, std::int64_t frame, std::int64_t y, std::int64_t y_end,
                  double* sums);
  // out[depth] = sum of weight[i] * row[i] over sum of weights `total`, for `count` rows of x.
  void (*blend)(const void* x, std::int64_t row_stride, const std::int32_t* rows,
                const float* weights, std::int64_t count, float total, std::int64_t depth,
                int dtype, void* out);
  // y[c] = x[index[c]] for c < n: rows of `bytes`, steps in bytes.
  void (*gather)(char* y, std::int64_t y_step, const char* x, std::int64_t x_step,
                 const std::int32_t* index, std::int64_t n, std::int64_t bytes);
};

}  // namespace headrace

HEADRACE_TABLES(PruneKernels, prune)
