// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/causal_conv/args.h"

namespace headrace {

// Throws std::invalid_argument before anything is written.
void causal_conv(const CausalConvArgs& args, int threads);

}  // namespace headrace
