// SPDX-License-Identifier: Apache-2.0
#include "gated_delta_rule.h"

#include "bind/bind.h"

namespace headrace::bind {

namespace {

// pointers: q, k, v, log_decay, beta, o, state, indptr, rows. sizes: tokens, streams, states,
// heads, value heads, K, V. strides: row and head of q, k and v.
void gated_delta_rule(const std::array<Address, 9>& pointers,
                      const std::array<std::int64_t, 7>& sizes,
                      const std::array<std::int64_t, 6>& strides, int dtype, float scale,
                      bool normalize, int threads) {
  headrace::GatedDeltaRuleArgs args{};
  args.q = at<const void>(pointers[0]);
  args.k = at<const void>(pointers[1]);
  args.v = at<const void>(pointers[2]);
  args.log_decay = at<const float>(pointers[3]);
  args.beta = at<const float>(pointers[4]);
  args.o = at<void>(pointers[5]);
  args.state = at<float>(pointers[6]);
  args.indptr = at<const std::int32_t>(pointers[7]);
  args.rows = at<const std::int32_t>(pointers[8]);
  args.heads = static_cast<int>(sizes[3]);
  args.v_heads = static_cast<int>(sizes[4]);
  args.dim = static_cast<int>(sizes[5]);
  args.v_dim = static_cast<int>(sizes[6]);
  args.q_row = strides[0];
  args.q_head = strides[1];
  args.k_row = strides[2];
  args.k_head = strides[3];
  args.v_row = strides[4];
  args.v_head = strides[5];
  args.dtype = dtype;
  args.scale = scale;
  args.normalize = normalize;
  py::gil_scoped_release nogil;
  headrace::gated_delta_rule(args, sizes[1], sizes[0], sizes[2], threads);
}

}  // namespace

void gated_delta_rule_family(py::module_& m) { m.def("gated_delta_rule", &gated_delta_rule); }

}  // namespace headrace::bind
