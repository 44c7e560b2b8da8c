// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include <algorithm>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {

void linear(const LinearArgs& args, int threads) {
  const LinearKernels& k = HEADRACE_PICK_BF16(linear);
  const double work = static_cast<double>(args.tokens) * args.outputs * args.depth;
  const int team = useful_threads(threads, work);
  // A block of rows that stays in the second-level cache. A strip of outputs meets all of them
  // before the next strip comes from memory; it is wide, because rows are packed anew for each,
  // while threads have enough to share and no sums have to wait.
  const bool narrow = args.x_dtype == kBF16 && args.w_dtype == kBF16;
  const std::int64_t row_bytes =
      std::clamp<std::int64_t>(args.depth * (narrow ? 2 : 4), 1, kLinearDeep);
  const auto blocks = [](std::int64_t n, std::int64_t of) { return (n + of - 1) / of; };
  constexpr std::int64_t kWhole = 12;  // rows that fill the register blocks of every level
  const std::int64_t most = std::clamp<std::int64_t>(600000 / row_bytes / kWhole, 1, 6) * kWhole;
  const std::int64_t tokens = std::max<std::int64_t>(args.tokens, 1);
  const std::int64_t rows = blocks(blocks(tokens, blocks(tokens, most)), kWhole) * kWhole;
  const std::int64_t down = blocks(tokens, rows);
  const bool passes = args.depth > linear_words(args.depth);
  std::int64_t strip = passes ? 96 : 384;
  const auto across = [&] { return blocks(args.outputs, strip); };
  while (strip > 96 && down * across() < 4 * team) strip -= 96;
  const Scratch scratch(rows * (linear_words(args.depth) + (passes ? strip * 16 : 0)), team);
  parallel(down * across(), team, [&](std::int64_t i, int thread) {
    const std::int64_t t = i % down * rows, n = i / down * strip;
    k.linear(args, t, std::min(args.tokens, t + rows), n, std::min(args.outputs, n + strip),
             scratch.of(thread));
  });
}

}  // namespace headrace
