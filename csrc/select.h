// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace headrace {

enum class SelectPolicy : int { kTopK, kThreshold, kShare, kMass, kOtsu, kQuota, kFlat };

// Strides are in elements; those of an axis that an array shares are 0.
struct SelectArgs {
  const void* score;  // [batch, heads, size], the last axis dense
  std::int64_t score_strides[2];
  int dtype;
  std::int64_t batch, heads, size, capacity;
  SelectPolicy policy;
  const std::int32_t* budget;   // [batch, heads] or null
  const float* counts;          // [batch, heads, size] or null
  const std::int32_t* buckets;  // [batch, heads, size] or null
  const std::int32_t* forced;   // [batch, heads, ranges, 2] or null
  const std::int32_t* lengths;  // [batch, heads] or null
  std::int64_t budget_strides[2], counts_strides[2], buckets_strides[2], forced_strides[4],
      lengths_strides[2];
  std::int64_t ranges, limit, quota, floor, first, last;  // limit < 0: none
  double threshold, share, mass;
  bool lowest;
  std::int32_t *index, *count;  // [batch, heads, capacity], [batch, heads]
};

void select(const SelectArgs& args, int threads);

}  // namespace headrace
