// SPDX-License-Identifier: Apache-2.0
#include "append_absorb.h"

#include "bind/pages.h"

namespace headrace::bind {

namespace {

HEADRACE_IN(k, v, k_pages, v_pages, where, evicted, state, norm, indptr, rows, inv_freq, freq_axis,
            k_scale, v_scale, log_decay, count, feature, raw);

Appended appended(const In& in) {
  return {in.k,        in.v,         in.k_pages, in.v_pages, in.where,
          in.inv_freq, in.freq_axis, in.k_scale, in.v_scale};
}

bool serves(const In& in, std::int64_t*) {
  const Appended append = appended(in);
  return append.serves() && in.evicted.size(1) == 1 + 2 * append.axes() &&
         in.feature.whole >= headrace::kIdentity && in.feature.whole <= headrace::kElu1;
}

void run(const In& in, int threads) {
  headrace::AppendAbsorbArgs args{};
  args.append = appended(in).args("append_absorb");
  args.evicted = in.evicted.as<const std::int64_t>();
  args.state = in.state.as<float>();
  args.norm = in.norm.as<float>();
  args.indptr = in.indptr.as<const std::int32_t>();
  args.rows = in.rows.as<const std::int32_t>();
  args.log_decay = in.log_decay.as<const float>();
  args.count = in.count.as<std::int64_t>();
  args.tokens = in.k.size(0);
  args.pages = in.k_pages.size(0);
  args.streams = in.rows.size(0);
  args.states = in.state.size(0);
  args.feature = static_cast<int>(in.feature.whole);
  args.raw = static_cast<int>(in.raw.whole);
  headrace::append_absorb(args, threads);
}

}  // namespace

void append_absorb_family() { bind_op<&serves, &run>("append_absorb"); }

}  // namespace headrace::bind
