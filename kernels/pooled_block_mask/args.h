// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

constexpr int kMaskRows = 6;  // query blocks that are scored together

struct PooledBlockMaskArgs {
  const void *q, *k;       // [B, Hq, Lq, D], [B, Hkv, Lk, D]
  bool* mask;              // [B, Hq, q_blocks, k_blocks] contiguous
  float *q_mean, *k_mean;  // [B * Hq * q_blocks, D], [B * Hkv * k_blocks, D]
  float* columns;          // [B * Hkv, D, padded], centred means, 0 beyond k_blocks
  std::int64_t q_strides[3], k_strides[3];  // batch, head, row; in elements
  std::int64_t q_len, k_len, block, q_blocks, k_blocks, padded, window, sinks, local, blocks;
  double share;
  int q_heads, kv_heads, dim, dtype;
  bool causal;  // blocks < 0: by share
};

struct PooledBlockMaskKernels {
  // Means of blocks [begin, end) of all heads: of q, or of k.
  void (*pool)(const PooledBlockMaskArgs&, bool keys, std::int64_t begin, std::int64_t end);
  // Columns of one kv head of one batch entry.
  void (*centre)(const PooledBlockMaskArgs&, std::int64_t head);
  // The mask of query blocks [first, first + rows) of one query head of one batch entry.
  // scratch: (kMaskRows + 1) * padded words.
  void (*choose)(const PooledBlockMaskArgs&, std::int64_t head, std::int64_t first, int rows,
                 float* scratch);
};

}  // namespace headrace

HEADRACE_TABLES(PooledBlockMaskKernels, pooled_block_mask)
