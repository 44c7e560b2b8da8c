// SPDX-License-Identifier: Apache-2.0
#include "hstu.h"

#include "bind/call.h"

namespace headrace::bind {

namespace {

HEADRACE_IN(q, k, v, k_indptr, q_indptr, num_targets, k_order, attn_scale, max_seq_len, alpha,
            causal, max_attn_len, contextual_seq_len, min_full_attn_seq_len, sinks, split, o);

bool serves(const In& in, std::int64_t*) {
  return sixteens(in.q.size(2), 256) && sixteens(in.v.size(2), 256) &&
         (in.q_indptr.there || in.q.size(0) == in.k.size(0)) && finite(in.alpha) &&
         in.max_seq_len.whole >= 1 && in.split.whole >= 1 && in.max_attn_len.whole >= 0 &&
         in.contextual_seq_len.whole >= 0 && in.min_full_attn_seq_len.whole >= 0 &&
         in.sinks.whole >= 0;
}

void run(const In& in, int threads) {
  headrace::HstuArgs args{};
  take_qkv(in, args);
  args.o = in.o.as<void>();
  args.attn_scale = in.attn_scale.as<const float>();
  args.split = in.split.whole;
  args.heads = static_cast<int>(in.q.size(1));
  args.dim = static_cast<int>(in.q.size(2));
  args.v_dim = static_cast<int>(in.v.size(2));
  args.alpha = static_cast<float>(in.alpha.number);
  args.weight = static_cast<float>(1.0 / static_cast<double>(in.max_seq_len.whole));
  headrace::HstuBatch batch{};
  batch.q_indptr = (in.q_indptr.there ? in.q_indptr : in.k_indptr).as<const std::int32_t>();
  batch.k_indptr = in.k_indptr.as<const std::int32_t>();
  batch.num_targets = in.num_targets.as<const std::int32_t>();
  batch.k_order = in.k_order.as<const std::int64_t>();
  batch.sequences = in.k_indptr.size(0) - 1;
  batch.queries = in.q.size(0);
  batch.keys = in.k.size(0);
  batch.rule.reach = in.max_attn_len.whole;
  batch.rule.context = in.contextual_seq_len.whole;
  batch.rule.full = in.min_full_attn_seq_len.whole;
  batch.rule.sinks = in.sinks.whole;
  batch.rule.causal = in.causal.whole;
  headrace::hstu_attention(args, batch, threads);
}

}  // namespace

void hstu_family() { bind_op<&serves, &run>("hstu_attention"); }

}  // namespace headrace::bind
