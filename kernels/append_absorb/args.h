// SPDX-License-Identifier: Apache-2.0
// What the host hands to the bodies of append_absorb. Plain data.
#pragma once
#include "kernels/attention/args.h"
#include "kernels/linear_attention/args.h"

namespace headrace {

constexpr int kAbsorbBlock = 64;  // tokens that the state meets in one pass

struct AppendAbsorbArgs {
  AppendArgs append;
  const std::int64_t* evicted;  // [T, 1 + 2 axes]: held, offsets from, offsets to
  float* state;                 // [S, Hkv, D, D] sums
  float* norm;                  // [S, Hkv, D] sums, or null: no normaliser
  std::int64_t* count;          // [S] or null
  const std::int32_t *indptr, *rows;
  const float* log_decay;  // [Hkv] or null
  std::int64_t tokens, pages, streams, states;
  int feature, raw;
};

// Three tables of angles, the rows that the state takes, what a page held, and a row.
inline std::int64_t absorb_scratch(const AppendAbsorbArgs& a) {
  return kAbsorbBlock * (6 * a.append.rope.half + 3 * a.append.dim) + (2 * kRun + 1) * a.append.dim;
}

struct AppendAbsorbKernels {
  // Heads [first, last) of one stream.
  void (*run)(const AppendAbsorbArgs&, std::int64_t stream, int first, int last, float* scratch);
};

}  // namespace headrace

HEADRACE_TABLES(AppendAbsorbKernels, append_absorb)
