// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/delta/args.h"

namespace headrace {

// `divisors` is the host's own. Throws std::invalid_argument before anything is written.
void frame_delta_rule(FrameDeltaArgs args, int threads);

}  // namespace headrace
