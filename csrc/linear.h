// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/linear/args.h"

namespace headrace {

void linear(const LinearArgs& args, int threads);

}  // namespace headrace
