// SPDX-License-Identifier: Apache-2.0
#include "delta.h"

#include "bind/bind.h"

namespace headrace::bind {

namespace {

void frame_delta_rule(const std::array<Address, 13>& p, const std::array<std::int64_t, 18>& n,
                      const std::array<int, 2>& kind, double eps, int threads) {
  headrace::FrameDeltaArgs args{};
  args.q = at<const void>(p[0]);
  args.k = at<const void>(p[1]);
  args.v = at<const void>(p[2]);
  args.q_hat = at<const void>(p[3]);
  args.k_hat = at<const void>(p[4]);
  args.beta = at<const float>(p[5]);
  args.log_decay = at<const float>(p[6]);
  args.state = at<float>(p[7]);
  args.norm = at<float>(p[8]);
  args.frames = at<const std::int32_t>(p[9]);
  args.indptr = at<const std::int32_t>(p[10]);
  args.rows = at<const std::int32_t>(p[11]);
  args.o = at<void>(p[12]);
  std::int64_t* sizes[] = {&args.tokens,    &args.heads,       &args.v_heads,   &args.dim,
                           &args.v_dim,     &args.frame_count, &args.streams,   &args.states,
                           &args.q_row,     &args.q_head,      &args.k_row,     &args.k_head,
                           &args.v_row,     &args.v_head,      &args.q_hat_row, &args.q_hat_head,
                           &args.k_hat_row, &args.k_hat_head};
  for (int i = 0; i < 18; ++i) *sizes[i] = n[i];
  args.dtype = kind[0];
  args.update = kind[1];
  args.eps = static_cast<float>(eps);
  py::gil_scoped_release nogil;
  headrace::frame_delta_rule(args, threads);
}

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

void delta_family(py::module_& m) {
  m.def("frame_delta_rule", &frame_delta_rule);
  m.def("gated_delta_rule", &gated_delta_rule);
}

}  // namespace headrace::bind
