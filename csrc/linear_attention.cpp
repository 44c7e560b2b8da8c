// SPDX-License-Identifier: Apache-2.0
// Host side of linear attention: what only values can tell, and the threads.
#include "linear_attention.h"

#include "common/isa.h"
#include "common/parallel.h"
#include "common/streams.h"

namespace headrace {
void linear_attention(const LinearAttentionArgs& args, int threads) {
  check_streams("linear_attention", args.indptr, args.rows, args.streams, args.tokens, args.states);
  const auto& kernels = HEADRACE_PICK(linear_attention);
  const double work =
      static_cast<double>(args.tokens) * (args.heads + args.kv_heads) * args.dim * args.v_dim;
  const int team = useful_threads(threads, work);
  const Scratch scratch(linear_scratch(args), team);
  parallel(args.streams * args.kv_heads, team, [&](std::int64_t i, int t) {
    kernels.run(args, i / args.kv_heads, i % args.kv_heads, scratch.of(t));
  });
}

}  // namespace headrace
