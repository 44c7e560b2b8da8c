// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include <algorithm>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {

namespace {

std::int64_t blocks(std::int64_t n, std::int64_t of) { return (n + of - 1) / of; }

// Rows and outputs of a work item, and scratch for it.
struct Items {
  std::int64_t rows, strip, words;
};

// A block of rows that stays in the second-level cache. A strip of outputs meets all of them
// before the next strip comes from memory; it is as wide as lets threads end together, because
// rows are packed anew for each, and narrow where sums have to wait.
Items by_rows(const LinearArgs& args, int team) {
  const bool narrow = args.x_dtype == kBF16 && args.w_dtype == kBF16;
  const std::int64_t row_bytes =
      std::clamp<std::int64_t>(args.depth * (narrow ? 2 : 4), 1, kLinearDeep);
  constexpr std::int64_t kWhole = 12;  // rows that fill the register blocks of every level
  const std::int64_t most = std::clamp<std::int64_t>(600000 / row_bytes / kWhole, 1, 6) * kWhole;
  const std::int64_t tokens = std::max<std::int64_t>(args.tokens, 1);
  const std::int64_t rows = blocks(blocks(tokens, blocks(tokens, most)), kWhole) * kWhole;
  const bool passes = args.depth > linear_words(args.depth);
  const std::int64_t widest = passes ? 96 : 1024;
  const std::int64_t wanted =
      std::min(blocks(8 * team, blocks(tokens, rows)), blocks(args.outputs, 96));
  const std::int64_t across = std::max({wanted, blocks(args.outputs, widest), std::int64_t{1}});
  const std::int64_t strip = std::max<std::int64_t>(blocks(blocks(args.outputs, across), 8), 1) * 8;
  return {rows, strip, rows * (linear_words(args.depth) + (passes ? strip * 16 : 0))};
}

// The weights of a strip stay in the second-level cache until all rows have met them.
Items by_strips(const LinearArgs& args, int team) {
  constexpr std::int64_t kBytes = 512 << 10, kRows = 96;
  const std::int64_t widest = std::max<std::int64_t>(kBytes / (args.depth * 4) / 16, 1) * 16;
  const std::int64_t wanted = std::min<std::int64_t>(4 * team, blocks(args.outputs, 64));
  const std::int64_t across = std::max({wanted, blocks(args.outputs, widest), std::int64_t{1}});
  const std::int64_t strip =
      std::max<std::int64_t>(blocks(blocks(args.outputs, across), 16), 1) * 16;
  const std::int64_t down = std::min(blocks(args.tokens, kRows), blocks(4 * team, across));
  const std::int64_t rows = blocks(blocks(args.tokens, down), 48) * 48;
  // What is left of the rows goes by rows.
  return {rows, strip, std::max(linear_room(args, strip), 12 * linear_words(args.depth))};
}

}  // namespace

void linear(const LinearArgs& args, int threads) {
  const LinearKernels& k = HEADRACE_PICK_BF16(linear);
  const double work = static_cast<double>(args.tokens) * args.outputs * args.depth;
  const int team = useful_threads(threads, work);
  const bool strips = k.ways && linear_way(args) != LinearWay::kRows;
  const Items items = strips ? by_strips(args, team) : by_rows(args, team);
  const std::int64_t down = blocks(std::max<std::int64_t>(args.tokens, 1), items.rows);
  const std::int64_t across = std::max<std::int64_t>(blocks(args.outputs, items.strip), 1);
  const Scratch scratch(items.words, team);
  parallel(down * across, team, [&](std::int64_t i, int thread) {
    const std::int64_t t = i % down * items.rows, n = i / down * items.strip;
    k.linear(args, t, std::min(args.tokens, t + items.rows), n,
             std::min(args.outputs, n + items.strip), scratch.of(thread));
  });
}

}  // namespace headrace
