// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/pooled_block_mask/args.h"

namespace headrace {

// Fills args.mask; the buffers for means and columns, and the counts of blocks, are its own.
void pooled_block_mask(PooledBlockMaskArgs args, std::int64_t batch, int threads);

}  // namespace headrace
