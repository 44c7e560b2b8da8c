// SPDX-License-Identifier: Apache-2.0
// Host side of append_absorb: what only values can tell, and the threads.
#include "append_absorb.h"

#include <algorithm>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/slots.h"
#include "common/streams.h"

namespace headrace {
namespace {

// A slot named twice would evict what this very call writes.
void check_distinct(const AppendArgs& args, std::int64_t tokens) {
  std::vector<std::int64_t> slots(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t* at = args.where + t * (2 + args.rope.axes);
    slots[t] = at[0] * args.page_size + at[1];
  }
  std::sort(slots.begin(), slots.end());
  const auto twice = std::adjacent_find(slots.begin(), slots.end());
  if (twice == slots.end()) return;
  throw std::invalid_argument("append_absorb(where): expected every slot once, got slot " +
                              std::to_string(*twice % args.page_size) + " of page " +
                              std::to_string(*twice / args.page_size) +
                              " twice; give what would evict this call's own tokens to the next");
}

}  // namespace

void append_absorb(const AppendAbsorbArgs& args, int threads) {
  const AppendArgs& append = args.append;
  check_rope(append.rope, "append_absorb");
  check_slots(append, "append_absorb", args.tokens, args.pages);
  check_distinct(append, args.tokens);
  check_streams("append_absorb", args.indptr, args.rows, args.streams, args.tokens, args.states);
  const auto& kernels = HEADRACE_PICK(append_absorb);
  const double work = static_cast<double>(args.tokens) * append.kv_heads * append.dim * append.dim;
  const int team = useful_threads(threads, work);
  // Heads of an item share their angles; every thread wants items.
  int heads = append.kv_heads;
  const auto items = [&] { return args.streams * ((append.kv_heads + heads - 1) / heads); };
  while (team > 1 && heads > 1 && items() < 4 * team) heads = (heads + 1) / 2;
  const std::int64_t each = heads ? (append.kv_heads + heads - 1) / heads : 0;
  const Scratch scratch(absorb_scratch(args), team);
  parallel(args.streams * each, team, [&](std::int64_t i, int t) {
    const int first = static_cast<int>(i % each) * heads;
    kernels.run(args, i / each, first, std::min(first + heads, append.kv_heads), scratch.of(t));
  });
  const int fields = 1 + 2 * append.rope.axes;
  for (std::int64_t b = 0; args.count && b < args.streams; ++b) {
    for (std::int64_t t = args.indptr[b]; t < args.indptr[b + 1]; ++t) {
      args.count[args.rows[b]] += args.evicted[t * fields] != 0;
    }
  }
}

}  // namespace headrace
