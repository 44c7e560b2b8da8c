// SPDX-License-Identifier: Apache-2.0
#include "causal_conv.h"

#include "bind/bind.h"

namespace headrace::bind {

namespace {

void causal_conv(const std::array<Address, 7>& at_, const std::array<std::int64_t, 5>& sizes,
                 const std::array<int, 3>& kind, int threads) {
  headrace::CausalConvArgs args{};
  args.x = at<const void>(at_[0]);
  args.weight = at<const float>(at_[1]);
  args.bias = at<const float>(at_[2]);
  args.state = at<void>(at_[3]);
  args.y = at<void>(at_[4]);
  args.indptr = at<const std::int32_t>(at_[5]);
  args.rows = at<const std::int32_t>(at_[6]);
  args.tokens = sizes[0];
  args.channels = sizes[1];
  args.streams = sizes[2];
  args.states = sizes[3];
  args.x_row = sizes[4];
  args.taps = kind[0];
  args.dtype = kind[1];
  args.silu = kind[2];
  py::gil_scoped_release nogil;
  headrace::causal_conv(args, threads);
}

}  // namespace

void causal_conv_family(py::module_& m) { m.def("causal_conv", &causal_conv); }

}  // namespace headrace::bind
