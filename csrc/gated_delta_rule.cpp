// SPDX-License-Identifier: Apache-2.0
#include "gated_delta_rule.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {

void gated_delta_rule(const GatedDeltaRuleArgs& args, std::int64_t streams, std::int64_t tokens,
                      std::int64_t states, int threads) {
  const std::int32_t* p = args.indptr;
  bool rises = p[0] == 0 && p[streams] == tokens;
  for (std::int64_t b = 0; b < streams && rises; ++b) rises = p[b] <= p[b + 1];
  if (!rises) {
    throw std::invalid_argument("gated_delta_rule(indptr): expected offsets that rise from 0 to " +
                                std::to_string(tokens) + ", got others");
  }
  std::vector<char> taken(static_cast<std::size_t>(states));
  for (std::int64_t b = 0; b < streams; ++b) {
    const std::int32_t row = args.rows[b];
    if (row < 0 || row >= states || taken[row]) {
      throw std::invalid_argument("gated_delta_rule(rows): expected different states in [0, " +
                                  std::to_string(states) + "), got " + std::to_string(row) +
                                  " for stream " + std::to_string(b));
    }
    taken[row] = 1;
  }
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
