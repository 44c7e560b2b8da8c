// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/score/args.h"

namespace headrace {

// Fills args.out; the folded queries, and what they are folded to, are its own.
void block_score(BlockScoreArgs args, std::int64_t batch, int threads);

}  // namespace headrace
