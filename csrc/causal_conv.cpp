// SPDX-License-Identifier: Apache-2.0
// Host side of the causal convolution: what only values can tell, and the threads.
#include "causal_conv.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {
namespace {

void check(const CausalConvArgs& args) {
  const std::int32_t* p = args.indptr;
  bool rises = p[0] == 0 && p[args.streams] == args.tokens;
  for (std::int64_t b = 0; b < args.streams && rises; ++b) rises = p[b] <= p[b + 1];
  if (!rises) {
    throw std::invalid_argument("causal_conv(indptr): expected offsets that rise from 0 to " +
                                std::to_string(args.tokens) + ", got others");
  }
  std::vector<bool> taken(static_cast<std::size_t>(args.states));
  for (std::int64_t b = 0; b < args.streams; ++b) {
    const std::int32_t row = args.rows[b];
    if (row >= 0 && row < args.states && !taken[row]) {
      taken[row] = true;
      continue;
    }
    throw std::invalid_argument("causal_conv(rows): expected distinct rows in [0, " +
                                std::to_string(args.states) + "), got " + std::to_string(row) +
                                " for stream " + std::to_string(b));
  }
}

}  // namespace

void causal_conv(const CausalConvArgs& args, int threads) {
  check(args);
  const auto& kernels =
      pick(headrace_causal_conv_scalar, headrace_causal_conv_avx2, headrace_causal_conv_avx512);
  const std::int64_t strips = (args.channels + kConvChannels - 1) / kConvChannels;
  const double work = static_cast<double>(args.tokens + args.streams) * args.channels * args.taps;
  parallel(args.streams * strips, useful_threads(threads, work),
           [&](std::int64_t i, int) { kernels.run(args, i / strips, i % strips * kConvChannels); });
}

}  // namespace headrace
