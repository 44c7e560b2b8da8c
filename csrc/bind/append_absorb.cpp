// SPDX-License-Identifier: Apache-2.0
#include "append_absorb.h"

#include "bind/bind.h"
#include "bind/pages.h"

namespace headrace::bind {

namespace {

void append_absorb(const std::array<Address, 12>& p, const std::array<std::int64_t, 16>& n,
                   ScaleArgs k_scale, ScaleArgs v_scale, RopeArgs rope,
                   const std::array<int, 3>& kind, int threads) {
  headrace::AppendAbsorbArgs args{};
  headrace::AppendArgs& append = args.append;
  append.k = at<const void>(p[0]);
  append.v = at<const void>(p[1]);
  append.k_pages = at<void>(p[2]);
  append.v_pages = at<void>(p[3]);
  append.where = at<const std::int64_t>(p[4]);
  args.evicted = at<const std::int64_t>(p[5]);
  args.state = at<float>(p[6]);
  args.norm = at<float>(p[7]);
  args.indptr = at<const std::int32_t>(p[8]);
  args.rows = at<const std::int32_t>(p[9]);
  args.log_decay = at<const float>(p[10]);
  args.count = at<std::int64_t>(p[11]);
  std::int64_t* sizes[] = {&args.tokens,        &args.pages,    &args.streams,
                           &args.states,        &append.k_row,  &append.k_head,
                           &append.v_row,       &append.v_head, &append.k_page,
                           &append.k_page_head, &append.v_page, &append.v_page_head};
  for (int i = 0; i < 12; ++i) *sizes[i] = n[i];
  append.kv_heads = static_cast<int>(n[12]);
  append.dim = static_cast<int>(n[13]);
  append.page_size = static_cast<int>(n[14]);
  args.feature = static_cast<int>(n[15]);
  append.rope = rope_of(rope, 1.f);
  append.k_scale = scales_of(k_scale);
  append.v_scale = scales_of(v_scale);
  append.dtype = kind[0];
  append.page_dtype = kind[1];
  args.raw = kind[2];
  py::gil_scoped_release nogil;
  headrace::append_absorb(args, threads);
}

}  // namespace

void append_absorb_family(py::module_& m) { m.def("append_absorb", &append_absorb); }

}  // namespace headrace::bind
