// SPDX-License-Identifier: Apache-2.0
#include "delta.h"

#include "bind/call.h"

namespace headrace::bind {

namespace {

namespace frame {
HEADRACE_IN(q, k, v, beta, state, norm, frames, indptr, rows, log_decay, q_hat, k_hat, update, eps,
            o);

bool serves(const In& in, std::int64_t*) {
  return groups(in.v.size(1), in.q.size(1)) && sixteens(in.q.size(2), 512) &&
         sixteens(in.v.size(2), 512) && in.q_hat.there == in.k_hat.there;
}

void run(const In& in, int threads) {
  const Given &q_hat = (in.q_hat.there ? in.q_hat : in.q),
              &k_hat = (in.k_hat.there ? in.k_hat : in.k);
  headrace::FrameDeltaArgs args{};
  take_qkv(in, args);
  args.q_hat = q_hat;
  args.k_hat = k_hat;
  args.beta = in.beta.as<const float>();
  args.log_decay = in.log_decay.as<const float>();
  args.state = in.state.as<float>();
  args.norm = in.norm.as<float>();
  args.frames = in.frames.as<const std::int32_t>();
  args.indptr = in.indptr.as<const std::int32_t>();
  args.rows = in.rows.as<const std::int32_t>();
  args.o = in.o.as<void>();
  args.tokens = in.q.size(0);
  args.heads = in.q.size(1);
  args.v_heads = in.v.size(1);
  args.dim = in.q.size(2);
  args.v_dim = in.v.size(2);
  args.frame_count = in.frames.size(0) - 1;
  args.streams = in.rows.size(0);
  args.states = in.state.size(0);
  args.q_hat_row = q_hat.stride(0);
  args.q_hat_head = q_hat.stride(1);
  args.k_hat_row = k_hat.stride(0);
  args.k_hat_head = k_hat.stride(1);
  args.update = static_cast<int>(in.update.whole);
  args.eps = static_cast<float>(in.eps.number);
  headrace::frame_delta_rule(args, threads);
}
}  // namespace frame

namespace gated {
HEADRACE_IN(q, k, v, log_decay, beta, state, indptr, rows, scale, normalize, o);

bool serves(const In& in, std::int64_t*) {
  return groups(in.v.size(1), in.q.size(1)) && sixteens(in.q.size(2), 256) &&
         sixteens(in.v.size(2), 256);
}

void run(const In& in, int threads) {
  headrace::GatedDeltaRuleArgs args{};
  take_qkv(in, args);
  args.log_decay = in.log_decay.as<const float>();
  args.beta = in.beta.as<const float>();
  args.o = in.o.as<void>();
  args.state = in.state.as<float>();
  args.indptr = in.indptr.as<const std::int32_t>();
  args.rows = in.rows.as<const std::int32_t>();
  args.heads = static_cast<int>(in.q.size(1));
  args.v_heads = static_cast<int>(in.v.size(1));
  args.dim = static_cast<int>(in.q.size(2));
  args.v_dim = static_cast<int>(in.v.size(2));
  args.scale = scale_of(in.scale, in.q.size(2));
  args.normalize = in.normalize.whole;
  headrace::gated_delta_rule(args, in.rows.size(0), in.q.size(0), in.state.size(0), threads);
}
}  // namespace gated

}  // namespace

void delta_family() {
  bind_op<&frame::serves, &frame::run>("frame_delta_rule");
  bind_op<&gated::serves, &gated::run>("gated_delta_rule");
}

}  // namespace headrace::bind
