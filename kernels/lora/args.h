// SPDX-License-Identifier: Apache-2.0
// What the host hands to the bodies of multi-adapter low-rank products. Plain data.
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

// Dtypes of adapter weights: those of types.h, and codes with one scale a group.
enum PoolDType : int { kPoolF32 = 0, kPoolBF16 = 1, kPoolF16 = 2, kPoolI8 = 3, kPoolI4 = 4 };

// Rank row c has, of slice j, A's row a + c * a_row + j * a_slice, `depth` elements, and B's
// elements b + c / b_ranks * b_slot + c % b_ranks * b_rank + n * b_col, n < outputs.
struct LoraArgs {
  const void* x;  // [T, K], rows of stride x_row
  void* y;        // [T, N], rows of stride y_row
  const void *a, *b;
  const float *a_scale, *b_scale;  // [C, J, K / group], [C, N / group], or null
  const float* bias;               // [., N] or null
  const float* gain;               // [., N] or null
  const float* base_bias;          // [N] or null
  std::int64_t depth, outputs, x_row, y_row;
  std::int64_t a_row, a_slice, b_ranks, b_slot, b_rank, b_col;
  int slices, x_dtype, pool_dtype, a_group, b_group;
  std::int64_t a_groups, b_groups;  // of a row of codes; the host fills these in
};

// Rows of one segment: tokens that share their adapters.
struct LoraBlock {
  const std::int32_t* tokens;  // rows of x and y
  int count;
  const std::int32_t* rank_rows;  // of all slices, one after the other
  const std::int32_t* starts;     // [slices + 1], where each begins in rank_rows
  const std::int32_t* ends;       // [slices] columns of y at which each ends
  const float* factors;           // [count][width]: scale times weight of each adapter
  const std::uint8_t* adapter;    // which adapter of the row a rank row belongs to
  const std::int32_t* bias_rows;  // [width], -1: none
  std::int32_t gain_row;          // -1: none
  int width;
  float* bridge;          // [count][starts[slices]]
  const LoraBlock* next;  // the block that this thread takes after this one, or null
};

// Tokens of one block at most, and of them those that a chunk of x at a time is of.
constexpr int kLoraTokens = 48;
constexpr int kLoraTogether = 12;
constexpr int kLoraChunk = 2048;  // bytes
// Rank rows that one pass over a block takes, and those that a chunk of x meets.
constexpr int kLoraRanks = 4;
constexpr int kLoraPanel = 64;
// Weights of A that are widened at a time.
constexpr int kLoraWidened = 32768;

inline std::int64_t lora_scratch(std::int64_t depth) {
  return 4 * (depth + 32) + kLoraTogether * (kLoraChunk / 4) + kLoraWidened +
         kLoraTokens * (16 * kLoraPanel + 192) + 128 * 66 + 16384 + 64;
}

struct LoraKernels {
  // Fills rank rows [first, last) of the block's bridge.
  void (*shrink)(const LoraArgs&, const LoraBlock&, int first, int last, float* scratch);
  // Adds the block's bridge times B to columns [first, last) of y; first is a multiple of 64.
  void (*expand)(const LoraArgs&, const LoraBlock&, std::int64_t first, std::int64_t last,
                 float* scratch);
};

}  // namespace headrace

HEADRACE_TABLES(LoraKernels, lora)
