// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/delta/args.h"

namespace headrace {

// `divisors` is the host's own. Throws std::invalid_argument before anything is written.
void frame_delta_rule(FrameDeltaArgs args, int threads);

// Throws std::invalid_argument before anything is written.
void gated_delta_rule(const GatedDeltaRuleArgs& args, std::int64_t streams, std::int64_t tokens,
                      std::int64_t states, int threads);

}  // namespace headrace
