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
  const std::int64_t down = blocks(tokens, rows);
  const bool many = tokens > 8;  // which pack their rows, and write sixteen outputs at a time
  std::int64_t wanted = blocks((many ? 4 : 8) * team, down);
  while (wanted * down % team) ++wanted;
  wanted = std::min(wanted, blocks(args.outputs, 96));
  const std::int64_t across = std::max({wanted, blocks(args.outputs, widest), std::int64_t{1}});
  const std::int64_t line = many ? 16 : 8;
  const std::int64_t strip =
      std::max<std::int64_t>(blocks(blocks(args.outputs, across), line), 1) * line;
  return {rows, strip, rows * (linear_words(args.depth) + (passes ? strip * 16 : 0))};
}

// Fewer rows or less depth would not pay for what columns pack.
bool in_columns(const LinearArgs& args, const LinearKernels& k) {
  if (!k.columns.multiply || (k.pairs && args.x_dtype == kBF16 && args.w_dtype == kBF16))
    return false;
  return args.tokens >= 32 && args.depth >= 128;
}

// Rows are packed as a layout has them, then strips of outputs meet them.
template <class Layout>
void by_packed(const LinearArgs& args, const LinearPacked& k, int team) {
  const Layout c(args);
  const Scratch packed(c.words(), 1);
  const std::int64_t tall = c.blocks();
  const std::int64_t slice = blocks(c.steps, std::min(blocks(c.steps, 16), blocks(8 * team, tall)));
  const std::int64_t slices = blocks(c.steps, slice);
  parallel(tall * slices, team, [&](std::int64_t i, int) {
    const std::int64_t begin = i % slices * slice;
    k.pack(args, i / slices, begin, std::min(c.steps, begin + slice), packed.of(0));
  });
  constexpr std::int64_t kWidest = 64, kLeast = 32;
  const std::int64_t wanted = std::min<std::int64_t>(4 * team, blocks(args.outputs, kLeast));
  const std::int64_t across = std::max({wanted, blocks(args.outputs, kWidest), std::int64_t{1}});
  const std::int64_t strip = blocks(blocks(args.outputs, across), 16) * 16;
  const std::int64_t strips = blocks(args.outputs, strip);
  // Weights are packed anew for each part of the rows.
  const std::int64_t down = std::min(blocks(4 * team, strips), blocks(tall, 2));
  const std::int64_t part = blocks(tall, down);
  const Scratch scratch(c.scratch(strip), team);
  parallel(strips * down, team, [&](std::int64_t i, int thread) {
    const std::int64_t n = i / down * strip, begin = i % down * part;
    if (begin >= tall) return;
    k.multiply(args, packed.of(0), begin, std::min(tall, begin + part), n,
               std::min(args.outputs, n + strip), scratch.of(thread));
  });
}

// As many rows at a time as leave their packed form in a cache.
void many_rows(const LinearArgs& args, const LinearKernels& k, int team) {
  constexpr std::int64_t kWords = 4 << 20;
  const std::int64_t rows = std::max<std::int64_t>(kWords / args.depth / 48, 4) * 48;
  LinearArgs some = args;
  for (std::int64_t t = 0; t < args.tokens; t += rows) {
    some.x = static_cast<const char*>(args.x) + t * args.x_row * dtype_size(args.x_dtype);
    some.y = static_cast<char*>(args.y) + t * args.outputs * dtype_size(args.x_dtype);
    some.tokens = std::min(rows, args.tokens - t);
    if (args.depth <= LinearQuarters::kDeepest) {
      by_packed<LinearQuarters>(some, k.quarters, team);
    } else {
      by_packed<LinearColumns>(some, k.columns, team);
    }
  }
}

}  // namespace

void linear(const LinearArgs& args, int threads) {
  const LinearKernels& k = HEADRACE_PICK_BF16(linear);
  // The weights of few rows take longer to read than to multiply.
  const double rows = static_cast<double>(std::max<std::int64_t>(args.tokens, 4));
  const int team = useful_threads(threads, rows * args.outputs * args.depth);
  if (args.outputs && in_columns(args, k)) return many_rows(args, k, team);
  const Items items = by_rows(args, team);
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
