// SPDX-License-Identifier: Apache-2.0
#include "linear_attention.h"

#include "bind/bind.h"

namespace headrace::bind {

namespace {

void linear_attention(const std::array<Address, 12>& p, const std::array<std::int64_t, 14>& n,
                      const std::array<int, 3>& kind, const std::array<double, 2>& by,
                      int threads) {
  headrace::LinearAttentionArgs args{};
  args.q = at<const void>(p[0]);
  args.k = at<const void>(p[1]);
  args.v = at<const void>(p[2]);
  args.state = at<float>(p[3]);
  args.norm = at<float>(p[4]);
  args.indptr = at<const std::int32_t>(p[5]);
  args.rows = at<const std::int32_t>(p[6]);
  args.log_decay = at<const float>(p[7]);
  args.inv_freq = at<const double>(p[8]);
  args.offset = at<const std::int64_t>(p[9]);
  args.count = at<const std::int64_t>(p[10]);
  args.o = at<void>(p[11]);
  std::int64_t* sizes[] = {&args.tokens,  &args.heads,  &args.kv_heads, &args.dim,   &args.v_dim,
                           &args.streams, &args.states, &args.half,     &args.q_row, &args.q_head,
                           &args.k_row,   &args.k_head, &args.v_row,    &args.v_head};
  for (int i = 0; i < 14; ++i) *sizes[i] = n[i];
  args.dtype = kind[0];
  args.feature = kind[1];
  args.raw = kind[2];
  args.scale = static_cast<float>(by[0]);
  args.eps = static_cast<float>(by[1]);
  py::gil_scoped_release nogil;
  headrace::linear_attention(args, threads);
}

}  // namespace

void linear_attention_family(py::module_& m) { m.def("linear_attention", &linear_attention); }

}  // namespace headrace::bind
