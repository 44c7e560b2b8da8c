// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/prune/args.h"

namespace headrace {

constexpr std::int64_t kPruneWork = 1 << 16;  // elements that a work item is worth

// Rows of a batch of heads: x [batch, heads, size, depth], index [batch, heads, capacity] and count
// [batch, heads], whose strides are 0 along what they have once.
struct CompactArgs {
  const char* x;
  char* y;
  const std::int32_t* index;
  const std::int32_t* count;                // null: all of the capacity
  const std::uint8_t* mask;                 // [batch, heads, size] in place of index and count
  const std::int32_t* target;               // [batch, heads, size] or null
  const float* weights;                     // [batch, heads, size] or null
  float* sizes;                             // [batch, heads, capacity] contiguous
  std::int32_t* kept;                       // the same: the indices, -1 behind them
  std::int32_t* kept_count;                 // [batch, heads] contiguous
  std::int64_t x_strides[3], y_strides[3];  // elements
  std::int64_t index_strides[2], count_strides[2], target_strides[2], weight_strides[2],
      mask_strides[2];
  std::int64_t batch, heads, size, capacity, depth;
  std::int64_t item;  // bytes of an element
  bool aligned;       // scatter: rows of x come from the places that they go to
  int dtype;          // of merged elements
};

void similarity(const SimilarityArgs& args, int threads);
// y [batch, heads, capacity, depth] = rows of x, zeros behind the count; and what was kept.
void compact(const CompactArgs& args, int threads);
// y [batch, heads, size, depth]: its own rows move to its front.
void compact_inplace(const CompactArgs& args, int threads);
// y [batch, heads, size, depth] at the rows named = rows of x [batch, heads, capacity, depth].
void scatter_back(const CompactArgs& args, int threads);

}  // namespace headrace
