// SPDX-License-Identifier: Apache-2.0
// What the host side of the scoring ops shares.
#pragma once
#include "common/isa.h"
#include "kernels/score/args.h"

namespace headrace {

inline const ScoreKernels& score_kernels() { return HEADRACE_PICK_BF16(score); }

// Whether the processor counts the bits of the elements of a vector.
inline bool counts_bits_of_vectors() {
#ifdef HEADRACE_X86
  return __builtin_cpu_supports("avx512vpopcntdq");
#else
  return false;
#endif
}

}  // namespace headrace
