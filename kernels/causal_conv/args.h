// SPDX-License-Identifier: Apache-2.0
// What the host hands to the bodies of the causal convolution. Plain data.
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

constexpr int kConvTaps = 16;      // at most
constexpr int kConvChannels = 64;  // of one item; a multiple of every vector's width

struct CausalConvArgs {
  const void* x;        // [T, C], rows of stride x_row
  const float* weight;  // [C, taps], the last of a row for the newest input
  const float* bias;    // [C] or null
  void* state;          // [S, C, taps - 1], oldest first, of x's dtype
  void* y;              // [T, C] contiguous
  const std::int32_t* indptr;
  const std::int32_t* rows;
  std::int64_t tokens, channels, streams, states, x_row;
  int taps, dtype, silu;
};

struct CausalConvKernels {
  // Up to kConvChannels channels of one stream, from channel `first` on.
  void (*run)(const CausalConvArgs&, std::int64_t stream, std::int64_t first);
};

}  // namespace headrace

extern "C" {
extern const headrace::CausalConvKernels headrace_causal_conv_scalar;
extern const headrace::CausalConvKernels headrace_causal_conv_avx2;
extern const headrace::CausalConvKernels headrace_causal_conv_avx512;
}
