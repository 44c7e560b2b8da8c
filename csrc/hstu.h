// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/hstu/args.h"

namespace headrace {

struct HstuBatch {
  const std::int32_t* q_indptr;     // [B + 1]
  const std::int32_t* k_indptr;     // [B + 1]
  const std::int32_t* num_targets;  // [B] or null
  const std::int64_t* k_order;      // [Lk] or null: keys lie in order
  std::int64_t sequences, queries, keys;
  HstuRule rule;  // what is the same for all sequences
};

void hstu_attention(const HstuArgs& args, const HstuBatch& batch, int threads);

}  // namespace headrace
