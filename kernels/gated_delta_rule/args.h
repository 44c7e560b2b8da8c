// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

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

struct GatedDeltaRuleKernels {
  // Columns [first, last) of head `head` of stream `stream`.
  void (*run)(const GatedDeltaRuleArgs&, int stream, int head, int first, int last, float* scratch);
};

}  // namespace headrace

extern "C" {
extern const headrace::GatedDeltaRuleKernels headrace_gated_delta_rule_scalar;
extern const headrace::GatedDeltaRuleKernels headrace_gated_delta_rule_avx2;
extern const headrace::GatedDeltaRuleKernels headrace_gated_delta_rule_avx512;
}
