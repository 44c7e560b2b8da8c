// SPDX-License-Identifier: Apache-2.0
#include "linear_attention.h"

#include "bind/call.h"

namespace headrace::bind {

namespace {

HEADRACE_IN(q, k, v, state, norm, indptr, rows, log_decay, inv_freq, offset, count, feature, raw,
            scale, eps, o);

bool serves(const In& in, std::int64_t*) {
  const std::int64_t dim = in.q.size(2);
  return groups(in.q.size(1), in.state.size(1)) && sixteens(dim, 512) &&
         sixteens(in.state.size(3), 512) && in.k.there == in.v.there &&
         in.inv_freq.there == in.offset.there &&
         (!in.inv_freq.there || 2 * in.inv_freq.size(0) <= dim) &&
         in.feature.whole >= headrace::kIdentity && in.feature.whole <= headrace::kElu1 &&
         (in.k.there || !in.log_decay.there);
}

void run(const In& in, int threads) {
  headrace::LinearAttentionArgs args{};
  take_qkv(in, args);
  args.o = in.o.as<void>();
  args.state = in.state.as<float>();
  args.norm = in.norm.as<float>();
  args.indptr = in.indptr.as<const std::int32_t>();
  args.rows = in.rows.as<const std::int32_t>();
  args.log_decay = in.log_decay.as<const float>();
  args.inv_freq = in.inv_freq.as<const double>();
  args.offset = in.offset.as<const std::int64_t>();
  args.count = in.count.as<const std::int64_t>();
  args.tokens = in.q.size(0);
  args.heads = in.q.size(1);
  args.kv_heads = in.state.size(1);
  args.dim = in.q.size(2);
  args.v_dim = in.state.size(3);
  args.streams = in.rows.size(0);
  args.states = in.state.size(0);
  args.half = in.inv_freq.there ? in.inv_freq.size(0) : 0;
  args.feature = static_cast<int>(in.feature.whole);
  args.raw = static_cast<int>(in.raw.whole);
  args.scale = static_cast<float>(in.scale.number);
  args.eps = static_cast<float>(in.eps.number);
  headrace::linear_attention(args, threads);
}

}  // namespace

void linear_attention_family() { bind_op<&serves, &run>("linear_attention"); }

}  // namespace headrace::bind
