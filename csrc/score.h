// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/score/args.h"

namespace headrace {

// Each fills its results; buffers that an op needs, and what it folds to, are its own.
void block_score(BlockScoreArgs args, std::int64_t batch, int threads);

// count: [segments] or null. Rows whose id is no segment are left out.
void segment_reduce(const SegmentArgs& args, const std::int32_t* ids, std::int64_t ids_stride,
                    std::int64_t rows, std::int64_t segments, std::int32_t* count,
                    std::int64_t count_stride, int threads);

// How the rows of a group become one number, and what becomes of that along the keys.
struct MassPlan {
  const float* lse;   // [batch, q_heads, queries] natural logarithms, or null
  const float* past;  // [batch, kv_heads, past_keys] or null
  std::int64_t lse_strides[3], past_strides[3];
  std::int64_t past_keys, exclude, pool;
  bool mean, pool_largest;
  float decay;
  float* out;  // [batch, kv_heads, keys - exclude]
};
void attention_mass(MassArgs args, const MassPlan& plan, std::int64_t batch, int threads);

void assign(AssignArgs args, std::int64_t batch, int threads);

}  // namespace headrace
