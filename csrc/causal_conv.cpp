// SPDX-License-Identifier: Apache-2.0
// Host side of the causal convolution: what only values can tell, and the threads.
#include "causal_conv.h"

#include <algorithm>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/streams.h"

namespace headrace {

void causal_conv(CausalConvArgs args, int threads) {
  check_streams("causal_conv", args.indptr, args.rows, args.streams, args.tokens, args.states);
  const auto& kernels = HEADRACE_PICK(causal_conv);
  const std::int64_t strips = (args.channels + kConvChannels - 1) / kConvChannels;
  // Weights as rows over the channels, 0 beyond them.
  args.padded = strips * kConvChannels;
  const Scratch rows((args.taps + 1) * args.padded, 1);
  float *to = rows.of(0), *bias = to + args.taps * args.padded;
  for (int j = 0; j <= args.taps; ++j) {
    std::fill(to + j * args.padded + args.channels, to + (j + 1) * args.padded, 0.f);
  }
  kernels.weights(args, to);
  if (args.bias) std::copy(args.bias, args.bias + args.channels, bias);
  if (!args.bias) std::fill(bias, bias + args.channels, 0.f);
  args.weight = to;
  args.bias = bias;
  struct Item {
    std::int64_t stream, begin;
  };
  std::vector<Item> items;
  std::vector<std::int64_t> longer;  // streams of more than one item
  for (std::int64_t b = 0; b < args.streams; ++b) {
    const std::int64_t count = args.indptr[b + 1] - args.indptr[b];
    for (std::int64_t t = 0; t < count; t += kConvTokens) items.push_back({b, t});
    if (count > kConvTokens) longer.push_back(b);
  }
  const double work = static_cast<double>(args.tokens + args.streams) * args.channels * args.taps;
  const int team = useful_threads(threads, work);
  const Scratch scratch(kConvScratch, team);
  parallel(static_cast<std::int64_t>(items.size()) * strips, team, [&](std::int64_t i, int t) {
    const Item& item = items[i / strips];
    kernels.run(args, item.stream, item.begin, i % strips * kConvChannels, scratch.of(t));
  });
  const std::int64_t rest = static_cast<std::int64_t>(longer.size()) * strips;
  parallel(rest, useful_threads(team, rest * 4.0 * kConvChannels), [&](std::int64_t i, int) {
    kernels.keep(args, longer[i / strips], i % strips * kConvChannels);
  });
}

}  // namespace headrace
