// SPDX-License-Identifier: Apache-2.0
// What the host hands to the bodies of linear attention. Plain data.
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

enum Feature : int { kIdentity = 0, kRelu = 1, kElu1 = 2 };

constexpr int kLinearBlock = 32;  // tokens that the state meets in one pass

struct LinearAttentionArgs {
  const void *q, *k, *v;  // [T, H, D], [T, Hkv, D], [T, Hkv, Dv]; k and v may be null
  void* o;                // [T, H, Dv] contiguous
  float* state;           // [S, Hkv, D, Dv] sums
  float* norm;            // [S, Hkv, D] sums, or null: no normaliser
  const std::int32_t* indptr;
  const std::int32_t* rows;
  const float* log_decay;      // [Hkv] or null
  const double* inv_freq;      // [half] or null
  const std::int64_t* offset;  // [T] or null
  const std::int64_t* count;   // [S] or null
  std::int64_t tokens, heads, kv_heads, dim, v_dim, streams, states, half;
  std::int64_t q_row, q_head, k_row, k_head, v_row, v_head;
  int dtype, feature, raw;
  float scale, eps;
};

inline std::int64_t linear_scratch(const LinearAttentionArgs& a) {
  return kLinearBlock * (4 * a.dim + 2 * a.v_dim + 2 * a.half) + a.dim;
}

struct LinearAttentionKernels {
  // One head of the state of one stream, and the query heads that read it.
  void (*run)(const LinearAttentionArgs&, std::int64_t stream, std::int64_t head, float* scratch);
};

}  // namespace headrace

HEADRACE_TABLES(LinearAttentionKernels, linear_attention)
