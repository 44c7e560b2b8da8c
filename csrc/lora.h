// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/lora/args.h"

namespace headrace {

// Which adapters the tokens use, and where these lie.
struct LoraBatch {
  const std::int32_t* slots;       // [T, width], -1: none
  const float* weights;            // [T, width] or null
  const float* scale;              // [S]
  const std::int32_t* rows;        // [M], or null: slot s has rows s * stack_rank onwards
  const std::int32_t* row_indptr;  // [S + 1]; null when rows is
  const std::int32_t* ranks;       // [S, slices] or null: all rows of a slot
  const std::int32_t* slice_ends;  // [slices] or null: one slice
  const std::int32_t* epilogue;    // [S, 2]: bias row, gain row (-1: none), or null
  std::int64_t tokens, slots_count, pool_rows, rows_count, stack_rank, biases, gains;
  int width;
  const char* op;
};

// Throws std::invalid_argument before anything is written.
void lora(const LoraArgs& args, const LoraBatch& batch, int threads);

}  // namespace headrace
