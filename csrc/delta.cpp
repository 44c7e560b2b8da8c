// SPDX-License-Identifier: Apache-2.0
// Host side of the delta family: what only values can tell, and the threads.
#include "delta.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/streams.h"

namespace headrace {
namespace {

const DeltaKernels& level() { return HEADRACE_PICK(delta); }

void check_rising(const char* name, const std::int32_t* p, std::int64_t n, std::int64_t total) {
  bool rises = p[0] == 0 && p[n] == total;
  for (std::int64_t i = 0; i < n && rises; ++i) rises = p[i] <= p[i + 1];
  if (!rises) {
    throw std::invalid_argument("frame_delta_rule(" + std::string(name) +
                                "): expected offsets that rise from 0 to " + std::to_string(total) +
                                ", got others");
  }
}

void check(const FrameDeltaArgs& args) {
  check_rising("frames", args.frames, args.frame_count, args.tokens);
  check_rising("indptr", args.indptr, args.streams, args.frame_count);
  std::vector<bool> taken(static_cast<std::size_t>(args.states));
  for (std::int64_t b = 0; b < args.streams; ++b) {
    const std::int32_t row = args.rows[b];
    if (row >= 0 && row < args.states && !taken[row]) {
      taken[row] = true;
      continue;
    }
    throw std::invalid_argument("frame_delta_rule(rows): expected distinct rows in [0, " +
                                std::to_string(args.states) + "), got " + std::to_string(row) +
                                " for stream " + std::to_string(b));
  }
}

}  // namespace

void frame_delta_rule(FrameDeltaArgs args, int threads) {
  check(args);
  const DeltaKernels& kernels = level();
  const double rows = static_cast<double>(args.tokens) * args.v_heads * args.dim;
  const int team = useful_threads(threads, 3 * rows * args.v_dim);
  const Scratch scratch(frame_delta_scratch(args), team);
  const Scratch divisors(args.tokens * args.v_heads, 1);
  args.divisors = divisors.of(0);
  const std::int64_t cells = args.streams * args.v_heads;
  // All denominators first: the strips of a head share them, and one owner writes norm.
  parallel(cells, useful_threads(team, 2 * rows), [&](std::int64_t i, int t) {
    kernels.norms(args, i / args.v_heads, i % args.v_heads, scratch.of(t));
  });
  const std::int64_t strips = (args.v_dim + kFrameColumns - 1) / kFrameColumns;
  parallel(cells * strips, team, [&](std::int64_t i, int t) {
    const std::int64_t cell = i / strips;
    kernels.strip(args, cell / args.v_heads, cell % args.v_heads, i % strips * kFrameColumns,
                  scratch.of(t));
  });
}

void gated_delta_rule(const GatedDeltaRuleArgs& args, std::int64_t streams, std::int64_t tokens,
                      std::int64_t states, int threads) {
  check_streams("gated_delta_rule", args.indptr, args.rows, streams, tokens, states);
  const DeltaKernels& kernels = level();
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
    kernels.gated(args, stream, head, first, last, scratch.of(t));
  });
}

}  // namespace headrace
