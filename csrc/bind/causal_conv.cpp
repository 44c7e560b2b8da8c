// SPDX-License-Identifier: Apache-2.0
#include "causal_conv.h"

#include "bind/call.h"

namespace headrace::bind {

namespace {

HEADRACE_IN(x, weight, bias, state, indptr, rows, silu, y);

bool serves(const In& in, std::int64_t*) { return in.weight.size(1) <= headrace::kConvTaps; }

void run(const In& in, int threads) {
  headrace::CausalConvArgs args{};
  args.x = in.x;
  args.weight = in.weight.as<const float>();
  args.bias = in.bias.as<const float>();
  args.state = in.state.as<void>();
  args.y = in.y.as<void>();
  args.indptr = in.indptr.as<const std::int32_t>();
  args.rows = in.rows.as<const std::int32_t>();
  args.tokens = in.x.size(0);
  args.channels = in.x.size(1);
  args.streams = in.rows.size(0);
  args.states = in.state.size(0);
  args.x_row = in.x.stride(0);
  args.taps = static_cast<int>(in.weight.size(1));
  args.dtype = in.x.dtype;
  args.silu = static_cast<int>(in.silu.whole);
  headrace::causal_conv(args, threads);
}

}  // namespace

void causal_conv_family() { bind_op<&serves, &run>("causal_conv"); }

}  // namespace headrace::bind
