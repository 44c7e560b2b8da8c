// SPDX-License-Identifier: Apache-2.0
// Host side of the causal convolution: what only values can tell, and the threads.
#include "causal_conv.h"

#include "common/isa.h"
#include "common/parallel.h"
#include "common/streams.h"

namespace headrace {
void causal_conv(const CausalConvArgs& args, int threads) {
  check_streams("causal_conv", args.indptr, args.rows, args.streams, args.tokens, args.states);
  const auto& kernels =
      pick(headrace_causal_conv_scalar, headrace_causal_conv_avx2, headrace_causal_conv_avx512);
  const std::int64_t strips = (args.channels + kConvChannels - 1) / kConvChannels;
  const double work = static_cast<double>(args.tokens + args.streams) * args.channels * args.taps;
  parallel(args.streams * strips, useful_threads(threads, work),
           [&](std::int64_t i, int) { kernels.run(args, i / strips, i % strips * kConvChannels); });
}

}  // namespace headrace
