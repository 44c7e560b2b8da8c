// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace headrace {

// Multiply-adds per second of `threads` threads together, from registers.
double multiply_add_rate(double seconds, int threads);
// Seconds that one pass over `words` fp32 words takes, at the best of `passes`, each thread its
// share.
double read_seconds(const float* data, std::int64_t words, int passes, int threads);

}  // namespace headrace
