// SPDX-License-Identifier: Apache-2.0
// What the host hands to the bodies of the delta family. Plain data.
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

constexpr int kFrameTokens = 64;   // tokens of a frame that are wide at a time
constexpr int kFrameColumns = 64;  // columns of a state that one item owns

struct FrameDeltaArgs {
  const void *q, *k, *v;       // [T, H, K] twice, [T, HV, V]
  const void *q_hat, *k_hat;   // the rotated rows; q and k themselves where nothing turns
  const float* beta;           // [T, HV]
  const float* log_decay;      // [F, HV] or null
  float* state;                // [S, HV, K, V]
  float* norm;                 // [S, HV, K]
  const std::int32_t* frames;  // [F + 1] tokens
  const std::int32_t* indptr;  // [B + 1] frames
  const std::int32_t* rows;    // [B]
  void* o;                     // [T, HV, V] contiguous
  float* divisors;             // [T, HV]; the host's, written by `norms`, read by `strip`
  std::int64_t tokens, heads, v_heads, dim, v_dim, frame_count, streams, states;
  std::int64_t q_row, q_head, k_row, k_head, v_row, v_head;
  std::int64_t q_hat_row, q_hat_head, k_hat_row, k_hat_head;
  int dtype, update;
  float eps;
};

inline std::int64_t frame_delta_scratch(const FrameDeltaArgs& a) {
  return 2 * a.dim * kFrameColumns + kFrameTokens * (a.dim + kFrameColumns);
}

struct GatedDeltaRuleArgs {
  const void *q, *k, *v;              // [T, H, K] twice, [T, HV, V]
  const float *log_decay, *beta;      // [T, HV]
  void* o;                            // [T, HV, V] contiguous
  float* state;                       // [S, HV, K, V] contiguous
  const std::int32_t *indptr, *rows;  // [B + 1], [B]
  std::int64_t q_row, q_head, k_row, k_head, v_row, v_head;
  int heads, v_heads, dim, v_dim, dtype;
  float scale;
  bool normalize;
};

// Columns of a state that one item owns: a strip of them stays in the first-level cache while all
// tokens of the stream pass.
constexpr int kDeltaColumns = 32;
// Tokens whose keys and queries are widened at a time.
constexpr int kDeltaTokens = 32;

inline std::int64_t delta_scratch(int dim) {
  return dim * kDeltaColumns + 2 * (kDeltaTokens + 1) * dim + 2 * kDeltaTokens + 64;
}

struct DeltaKernels {
  // The denominators of one head of one stream, and its row of norm.
  void (*norms)(const FrameDeltaArgs&, std::int64_t stream, std::int64_t head, float* scratch);
  // The columns of one head's state from `first`, kFrameColumns of them or what is left.
  void (*strip)(const FrameDeltaArgs&, std::int64_t stream, std::int64_t head, std::int64_t first,
                float* scratch);
  // Columns [first, last) of head `head` of stream `stream`, of the rule token by token.
  void (*gated)(const GatedDeltaRuleArgs&, int stream, int head, int first, int last,
                float* scratch);
};

}  // namespace headrace

HEADRACE_TABLES(DeltaKernels, delta)
