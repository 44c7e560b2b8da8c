// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include "bind/call.h"

namespace headrace::bind {

namespace {

HEADRACE_IN(x, weight, bias, y);

bool serves(const In&, std::int64_t*) { return true; }

void run(const In& in, int threads) {
  const headrace::LinearArgs args{in.x,
                                  in.weight,
                                  in.bias,
                                  in.y.as<void>(),
                                  in.x.size(0),
                                  in.weight.size(0),
                                  in.x.size(1),
                                  in.x.stride(0),
                                  in.weight.stride(0),
                                  in.x.dtype,
                                  in.weight.dtype};
  headrace::linear(args, threads);
}

}  // namespace

void linear_family() { bind_op<&serves, &run>("linear"); }

}  // namespace headrace::bind
