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

struct DeltaKernels {
  // The denominators of one head of one stream, and its row of norm.
  void (*norms)(const FrameDeltaArgs&, std::int64_t stream, std::int64_t head, float* scratch);
  // The columns of one head's state from `first`, kFrameColumns of them or what is left.
  void (*strip)(const FrameDeltaArgs&, std::int64_t stream, std::int64_t head, std::int64_t first,
                float* scratch);
};

}  // namespace headrace

extern "C" {
extern const headrace::DeltaKernels headrace_delta_scalar;
extern const headrace::DeltaKernels headrace_delta_avx2;
extern const headrace::DeltaKernels headrace_delta_avx512;
}
