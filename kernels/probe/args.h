// SPDX-License-Identifier: Apache-2.0
// What the machine can do at most, measured: the floors that benchmarks hold kernels against.
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

struct ProbeKernels {
  // Each runs `rounds` rounds of independent multiply-adds in registers and gives how many that
  // was: of fp32; of bf16 and of int16, whose products are summed in pairs where the level can.
  std::int64_t (*multiply_add)(std::int64_t rounds, float* sink);
  std::int64_t (*bf16_dots)(std::int64_t rounds, float* sink);
  std::int64_t (*int16_dots)(std::int64_t rounds, float* sink);
  // Reads words [begin, end) of a buffer once.
  void (*read)(const float* data, std::int64_t begin, std::int64_t end, float* sink);
};

}  // namespace headrace

HEADRACE_TABLES(ProbeKernels, probe)
