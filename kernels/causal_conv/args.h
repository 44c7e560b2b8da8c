// SPDX-License-Identifier: Apache-2.0
// What the host hands to the bodies of the causal convolution. Plain data.
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

constexpr int kConvTaps = 16;        // at most
constexpr int kConvChannels = 1024;  // of one item; a multiple of every vector's width
constexpr int kConvTokens = 64;      // of one item

struct CausalConvArgs {
  const void* x;        // [T, C], rows of stride x_row
  const float* weight;  // [taps, padded], the last row for the newest input; the host's own
  const float* bias;    // [padded], the host's own
  void* state;          // [S, C, taps - 1], oldest first, of x's dtype
  void* y;              // [T, C] contiguous
  const std::int32_t* indptr;
  const std::int32_t* rows;
  std::int64_t tokens, channels, padded, streams, states, x_row;  // padded: to kConvChannels
  int taps, dtype, silu;
};

// Words of 4 bytes that an item needs: the kept inputs of its channels as rows.
constexpr std::int64_t kConvScratch = (kConvTaps - 1) * kConvChannels;

struct CausalConvKernels {
  // weight [C, taps] as rows [taps, padded]; what is beyond C stays as it is.
  void (*weights)(const CausalConvArgs&, float* rows);
  // Up to kConvTokens tokens of a stream from its token `begin` on, and up to kConvChannels
  // channels from `first` on; where these are all tokens, the state too.
  void (*run)(const CausalConvArgs&, std::int64_t stream, std::int64_t begin, std::int64_t first,
              void* scratch);
  // The state of a stream of more tokens, once all are through.
  void (*keep)(const CausalConvArgs&, std::int64_t stream, std::int64_t first);
};

}  // namespace headrace

HEADRACE_TABLES(CausalConvKernels, causal_conv)
