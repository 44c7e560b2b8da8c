// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/linear_attention/args.h"

namespace headrace {

// Throws std::invalid_argument before anything is written.
void linear_attention(const LinearAttentionArgs& args, int threads);

}  // namespace headrace
