// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/causal_conv/args.h"

namespace headrace {

// weight [C, taps] and bias [C] or null, padded left open. Throws std::invalid_argument before
// anything is written.
void causal_conv(CausalConvArgs args, int threads);

}  // namespace headrace
