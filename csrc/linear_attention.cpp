// SPDX-License-Identifier: Apache-2.0
// Host side of linear attention: what only values can tell, and the threads.
#include "linear_attention.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {
namespace {

void check(const LinearAttentionArgs& args) {
  const std::int32_t* p = args.indptr;
  bool rises = p[0] == 0 && p[args.streams] == args.tokens;
  for (std::int64_t b = 0; b < args.streams && rises; ++b) rises = p[b] <= p[b + 1];
  if (!rises) {
    throw std::invalid_argument("linear_attention(indptr): expected offsets that rise from 0 to " +
                                std::to_string(args.tokens) + ", got others");
  }
  std::vector<bool> taken(static_cast<std::size_t>(args.states));
  for (std::int64_t b = 0; b < args.streams; ++b) {
    const std::int32_t row = args.rows[b];
    if (row >= 0 && row < args.states && !taken[row]) {
      taken[row] = true;
      continue;
    }
    throw std::invalid_argument("linear_attention(rows): expected distinct rows in [0, " +
                                std::to_string(args.states) + "), got " + std::to_string(row) +
                                " for stream " + std::to_string(b));
  }
}

}  // namespace

void linear_attention(const LinearAttentionArgs& args, int threads) {
  check(args);
  const auto& kernels = pick(headrace_linear_attention_scalar, headrace_linear_attention_avx2,
                             headrace_linear_attention_avx512);
  const double work =
      static_cast<double>(args.tokens) * (args.heads + args.kv_heads) * args.dim * args.v_dim;
  const int team = useful_threads(threads, work);
  const Scratch scratch(linear_scratch(args), team);
  parallel(args.streams * args.kv_heads, team, [&](std::int64_t i, int t) {
    kernels.run(args, i / args.kv_heads, i % args.kv_heads, scratch.of(t));
  });
}

}  // namespace headrace
