// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace headrace {

// Multiply-adds per second of `threads` threads at once, the sum of what each has at its best, from
// registers. dtype is that of the factors: bf16, and int8 widened to int16, are multiplied in pairs
// where the level has such dot products; everything else as fp32.
double multiply_add_rate(int dtype, double seconds, int threads);
// Seconds that reading `words` fp32 words takes. The first `again` of them are read a second time
// while they are near, as what is written where it was read.
double read_seconds(const float* data, std::int64_t words, std::int64_t again, int threads);
// Seconds that reading `words` fp32 words takes, `copied` of them, spread over all, with writing
// them to where they have their places in `to`.
double copy_seconds(const float* from, std::int64_t words, float* to, std::int64_t copied,
                    int threads);

}  // namespace headrace
