// SPDX-License-Identifier: Apache-2.0
#include "gated_delta_rule.h"

#include <algorithm>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/streams.h"

namespace headrace {

void gated_delta_rule(const GatedDeltaRuleArgs& args, std::int64_t streams, std::int64_t tokens,
                      std::int64_t states, int threads) {
  check_streams("gated_delta_rule", args.indptr, args.rows, streams, tokens, states);
  const auto& kernels = pick(headrace_gated_delta_rule_scalar, headrace_gated_delta_rule_avx2,
                             headrace_gated_delta_rule_avx512);
  // A long stream is shared out by strips; the heads of many short ones are enough.
  const int strips = (args.v_dim + kDeltaColumns - 1) / kDeltaColumns;
  const std::int64_t cells = streams * args.v_heads;
  const int parts = cells >= 4 * threads ? 1 : strips;
  const double work = 3.0 * tokens * args.v_heads * args.dim * args.v_dim;
  const int team = useful_threads(threads, work);
  const Scratch scratch(delta_scratch(args.dim), team);
  parallel(cells * parts, team, [&](std::int64_t i, int t) {
    const int stream = static_cast<int>(i / parts / args.v_heads);
    const int head = static_cast<int>(i / parts % args.v_heads);
    if (args.indptr[stream] == args.indptr[stream + 1]) return;
    const int first = parts == 1 ? 0 : static_cast<int>(i % parts) * kDeltaColumns;
    const int last = parts == 1 ? args.v_dim : std::min(args.v_dim, first + kDeltaColumns);
    kernels.run(args, stream, head, first, last, scratch.of(t));
  });
}

}  // namespace headrace
