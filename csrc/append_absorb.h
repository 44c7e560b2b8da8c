// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/append_absorb/args.h"

namespace headrace {

// Throws std::invalid_argument before anything is written.
void append_absorb(const AppendAbsorbArgs& args, int threads);

}  // namespace headrace
