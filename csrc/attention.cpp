// SPDX-License-Identifier: Apache-2.0
// Host side of dense attention, which cuts a call into work items whose bounds depend on the rows
// alone and merges their splits in order, of append and of merge_states.
#include "attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/slots.h"
#include "kernels/attention/blocks.h"

namespace headrace {
namespace {

constexpr std::int64_t kCachedTiles = 64;

const AttentionKernels& kernels() { return HEADRACE_PICK_VNNI(attention); }

// Cuts `visible` tokens of one block into splits of `split` tokens and adds an item for each.
template <class Item>
void add_splits(std::vector<Item>& items, Item item, std::int64_t visible, std::int64_t split,
                std::int64_t words, std::int64_t& partial_words) {
  const int splits = static_cast<int>(std::max<std::int64_t>(1, (visible + split - 1) / split));
  item.share.splits = splits;
  // Offsets for now; they become addresses once the buffer exists.
  item.share.partial = reinterpret_cast<float*>(partial_words * sizeof(float));
  if (splits > 1) partial_words += words * splits;
  for (int i = 0; i < splits; ++i) {
    item.share.split = i;
    item.share.begin = i * split;
    item.share.end = std::min(visible, (i + 1) * split);
    items.push_back(item);
  }
}

template <class Args, class Item, class Run, class Merge>
void run_items(const Args& args, std::vector<Item>& items, std::int64_t partial_words,
               std::int64_t scratch_words, double work, int threads, Run run, Merge merge,
               std::int64_t cleared = 0) {
  std::vector<float> partial(static_cast<std::size_t>(partial_words));
  for (Item& item : items) {
    item.share.partial =
        item.share.splits > 1
            ? partial.data() + reinterpret_cast<std::uintptr_t>(item.share.partial) / sizeof(float)
            : nullptr;
  }
  const std::int64_t count = static_cast<std::int64_t>(items.size());
  const int team = useful_threads(threads, work);
  const Scratch scratch(scratch_words, team);
  for (int t = 0; t < team; ++t) std::memset(scratch.of(t), 0xff, cleared * sizeof(float));
  parallel(count, team, [&](std::int64_t i, int t) { run(args, items[i], scratch.of(t)); });
  if (partial_words == 0) return;
  parallel(count, team, [&](std::int64_t i, int) {
    if (items[i].share.splits > 1 && items[i].share.split == 0) merge(args, items[i]);
  });
}

}  // namespace

void attention(DenseArgs args, std::int64_t batch, std::int64_t split, int threads) {
  const int group = args.q_heads / args.kv_heads;
  // Query heads that share a block mask read keys and values together; others go one by one.
  const int heads = args.block_mask && args.mask_head ? 1 : group;
  const int block = block_positions(heads);
  // Keep as many packed tiles of keys as the next block of queries sees again, within reason.
  const std::int64_t hull = std::min(args.k_len, (args.causal ? 1 : 2) * args.window + block);
  args.cached = 1;
  if (args.q_len > block) args.cached = std::min<std::int64_t>(hull / kTile + 3, kCachedTiles);
  std::vector<DenseItem> items;
  std::int64_t partial_words = 0;
  double work = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (int head = 0; head < args.q_heads; head += heads) {
      // The last positions see most; they go first, so that the threads end together.
      for (std::int64_t end = args.q_len; end > 0;) {
        std::int64_t i = (end - 1) / block * block;
        if (args.block_mask) {
          const std::int64_t row = (end - 1) / args.block * args.block;
          i = row + (end - 1 - row) / block * block;
        }
        const int n = static_cast<int>(end - i);
        end = i;
        DenseItem item{i, static_cast<int>(b), head, heads, n, {}};
        const std::int64_t oldest = i + args.k_len - args.q_len, newest = oldest + n - 1;
        const Range sinks = visible_sinks(newest, args.sinks, args.k_len, args.causal);
        const Range rest =
            visible_window(oldest, newest, args.sinks, args.window, args.k_len, args.causal);
        const std::int64_t tokens =
            sinks.hi - sinks.lo + keys_in_blocks(block_row(args, item), rest.lo, rest.hi);
        work += static_cast<double>(tokens) * n * heads * args.dim * 2;
        add_splits(items, item, tokens, split,
                   static_cast<std::int64_t>(n) * heads * (args.dim + 2), partial_words);
      }
    }
  }
  run_items(args, items, partial_words,
            cache_words(args) + attention_scratch(block, block * heads, args.dim, 0), work, threads,
            kernels().dense, kernels().dense_merge, owner_words(args.cached));
}

void append(const AppendArgs& args, std::int64_t tokens, std::int64_t pages, int threads) {
  check_rope(args.rope, "append");
  check_slots(args, "append", tokens, pages);
  const auto at = [&](std::int64_t t) { return args.where + t * (2 + args.rope.axes); };
  // A run is what one call writes. The runs of one page are one thread's, since neighbours in a
  // page share the lines of its columns.
  std::vector<std::int64_t> runs{0}, pages_begin{0};
  for (std::int64_t t = 1; t < tokens; ++t) {
    const bool follows = at(t)[0] == at(t - 1)[0] && at(t)[1] == at(t - 1)[1] + 1;
    if (follows && at(t)[1] % kRun != 0) continue;
    if (!follows || at(t)[1] % kOwned == 0) {
      pages_begin.push_back(static_cast<std::int64_t>(runs.size()));
    }
    runs.push_back(t);
  }
  if (tokens == 0) return;
  pages_begin.push_back(static_cast<std::int64_t>(runs.size()));
  runs.push_back(tokens);
  const int team = useful_threads(threads, 8.0 * tokens * args.kv_heads * args.dim);
  const Scratch scratch((kRun + 1) * args.dim + 2 * kRun * args.rope.half, team);
  parallel(static_cast<std::int64_t>(pages_begin.size()) - 1, team, [&](std::int64_t i, int t) {
    for (std::int64_t run = pages_begin[i]; run < pages_begin[i + 1]; ++run) {
      kernels().append(args, runs[run], runs[run + 1], scratch.of(t));
    }
  });
}

void merge_states(const MergeArgs& args, std::int64_t rows, int threads) {
  constexpr std::int64_t kGrain = 64;
  const int team = useful_threads(threads, 4.0 * rows * args.dim);
  parallel((rows + kGrain - 1) / kGrain, team, [&](std::int64_t i, int) {
    kernels().merge(args, i * kGrain, std::min(rows, (i + 1) * kGrain));
  });
}

}  // namespace headrace
