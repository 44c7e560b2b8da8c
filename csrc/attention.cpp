// SPDX-License-Identifier: Apache-2.0
// Host side of attention: cuts a call into work items whose bounds depend on each stream's own view
// and rows alone, runs them, and merges the splits in order.
#include "attention.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cascade.h"
#include "common/isa.h"
#include "common/pages.h"
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

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check_entry(const std::int64_t* e, std::int64_t index, std::int64_t pages, int page_size,
                 int fields) {
  const bool page = e[kPage] >= 0 && e[kPage] < pages;
  const bool slots = e[kFirst] >= 0 && e[kCount] >= 0 && e[kCount] <= page_size &&
                     e[kFirst] <= page_size - e[kCount];
  std::int64_t cap = e[kCap];
  for (int i = kOrigin1 + 1; i < fields; i += 2) cap = std::min(cap, e[i]);
  if (page && slots && e[kReach] >= 0 && cap >= 0) return;
  std::string expected, got;
  if (!page) {
    expected = "pages in [0, " + std::to_string(pages) + ")";
    got = std::to_string(e[kPage]);
  } else if (!slots) {
    expected = "first and count within a page of " + std::to_string(page_size) + " slots";
    got = "first " + std::to_string(e[kFirst]) + " and count " + std::to_string(e[kCount]);
  } else {
    expected = "reach and cap of 0 or more";
    got = "reach " + std::to_string(e[kReach]) + " and cap " + std::to_string(cap);
  }
  refuse("paged_attention(entries): expected " + expected + ", got " + got + " in entry " +
         std::to_string(index));
}

void check_indptr(const std::int32_t* p, std::int64_t streams, std::int64_t total,
                  const char* name) {
  bool good = p[0] == 0 && p[streams] == total;
  for (std::int64_t b = 0; b < streams && good; ++b) good = p[b] <= p[b + 1];
  if (!good) {
    refuse(std::string("paged_attention(") + name + "): expected offsets that rise from 0 to " +
           std::to_string(total) + ", got others");
  }
}

// Slots of entries [first, last) that any query of orders oldest..newest sees.
std::int64_t visible_tokens(const PagedArgs& args, std::int64_t first, std::int64_t last,
                            std::int64_t oldest, std::int64_t newest) {
  std::int64_t tokens = 0;
  for (std::int64_t e = first; e < last; ++e) {
    const std::int64_t* entry = args.entries + e * args.fields;
    const Range seen = visible(oldest, newest, entry[kOrder], entry[kReach], entry[kCount]);
    tokens += seen.hi - seen.lo;
  }
  return tokens;
}

}  // namespace

// kv heads that one item takes together. Neighbouring heads of a page lie side by side, so many at
// a time read memory in long runs; but the states of their rows must stay in cache, and threads
// that take items in turn must end together. A row's bits are the same whatever the number.
int heads_per_item(int kv_heads, int rows, const std::vector<double>& works, int threads) {
  constexpr double kUneven = 1.15;  // of the last thread's work over the mean
  int heads = std::clamp(kBlockRows / rows, 1, kv_heads);
  const double total = std::accumulate(works.begin(), works.end(), 0.0) * kv_heads;
  const std::size_t many = 16 * static_cast<std::size_t>(threads);  // end together in any case
  for (; heads > 1 && works.size() * kv_heads < many * heads; heads = (heads + 1) / 2) {
    std::vector<double> busy(threads, 0.0);
    for (double work : works) {
      for (int head = 0; head < kv_heads; head += heads) {
        *std::min_element(busy.begin(), busy.end()) += work * std::min(heads, kv_heads - head);
      }
    }
    if (*std::max_element(busy.begin(), busy.end()) * threads <= kUneven * total) break;
  }
  return heads;
}

void paged_attention(const PagedArgs& args, const PagedBatch& batch, int threads) {
  check_indptr(batch.entry_indptr, batch.lists, batch.entries, "entry_indptr");
  check_indptr(batch.q_indptr, batch.streams, batch.tokens, "q_indptr");
  for (std::int64_t e = 0; e < batch.entries; ++e) {
    check_entry(args.entries + e * args.fields, e, batch.pages, args.page_size, args.fields);
  }
  check_rope(args.rope, "paged_attention");
  if (args.q_heads == 0) return;
  const int group = args.q_heads / args.kv_heads, block = block_positions(group);
  std::vector<PagedBlock> blocks;
  const std::int64_t lists = batch.streams ? batch.lists / batch.streams : 1;  // of a stream
  std::vector<double> works;                                                   // of every split
  double work = 0;
  int most = 1;
  for (std::int64_t b = 0; b < batch.streams; ++b) {
    const std::int64_t begin = batch.q_indptr[b], end = batch.q_indptr[b + 1];
    for (std::int64_t row = begin; row < end; row += block) {
      const int n = static_cast<int>(std::min<std::int64_t>(block, end - row));
      const auto [oldest, newest] = std::minmax_element(args.q_order + row, args.q_order + row + n);
      for (std::int64_t list = b * lists; list < (b + 1) * lists; ++list) {
        const std::int64_t tokens = visible_tokens(args, batch.entry_indptr[list],
                                                   batch.entry_indptr[list + 1], *oldest, *newest);
        work += static_cast<double>(tokens) * n * args.q_heads / lists * args.dim * 2;
        for (std::int64_t at = 0; at < tokens; at += batch.split) {
          works.push_back(static_cast<double>(std::min(batch.split, tokens - at)) * n);
        }
        blocks.push_back(
            {list, row, tokens, n, static_cast<int>(list - b * lists), n == end - begin});
      }
      most = std::max(most, n);
    }
  }
  const std::vector<Prefix> prefixes =
      batch.streams > 1 ? shared_prefixes(args, batch.entry_indptr, blocks, block)
                        : std::vector<Prefix>{};
  for (const Prefix& p : prefixes) {
    int positions = 0;
    for (int b : p.blocks) {
      blocks[b].shared = p.tokens;
      positions += blocks[b].positions;
    }
    most = std::max(most, positions);
  }
  const int heads = lists > 1 ? 1 : heads_per_item(args.kv_heads, most * group, works, threads);
  const std::int64_t words = args.dim + 2;

  // Words of partial states and of states to go on from, block by block.
  std::int64_t total = 0;
  std::vector<std::int64_t> partials, resumes;
  const auto splits_of = [&](const PagedBlock& b) {
    return std::max<std::int64_t>(1, (b.tokens + batch.split - 1) / batch.split);
  };
  for (const PagedBlock& b : blocks) {
    const std::int64_t state =
        (lists > 1 ? 1 : args.kv_heads) * static_cast<std::int64_t>(b.positions) * group * words;
    partials.push_back(total);
    total += splits_of(b) > 1 ? splits_of(b) * state : 0;
    resumes.push_back(total);
    total += b.shared ? state : 0;
  }
  std::vector<float> states(static_cast<std::size_t>(total));

  std::vector<PagedItem> items, merges;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const PagedBlock& b = blocks[i];
    const std::int64_t first = batch.entry_indptr[b.list];
    const std::int64_t entries = batch.entry_indptr[b.list + 1] - first;
    const std::int64_t row_words = static_cast<std::int64_t>(b.positions) * group * words;
    const int end = lists > 1 ? b.head + 1 : args.kv_heads, count = static_cast<int>(splits_of(b));
    for (int head = b.head; head < end; head += heads) {
      PagedItem item{b.row, first, entries, b.positions, head, std::min(heads, end - head),
                     {},    {},    {},      {}};
      item.share.splits = count;
      if (count > 1) {
        item.share.partial = states.data() + partials[i] + (head - b.head) * count * row_words;
        merges.push_back(item);
      }
      for (int split = 0; split < count; ++split) {
        const std::int64_t begin = split * batch.split;
        const std::int64_t stop = std::min(b.tokens, begin + batch.split);
        // Whole splits of a shared prefix are none of the stream's own work.
        if (stop <= b.shared && count > 1) continue;
        item.share.split = split;
        item.share.begin = std::max(begin, b.shared);
        item.share.end = stop;
        const bool goes_on = b.shared > begin;
        item.resume = goes_on ? states.data() + resumes[i] + (head - b.head) * row_words : nullptr;
        items.push_back(item);
      }
    }
  }

  // The prefixes, split as every one of their streams splits them.
  std::vector<PagedItem> shared;
  std::vector<std::vector<std::int64_t>> tokens(prefixes.size());
  std::vector<std::vector<State>> keeps;
  for (std::size_t p = 0; p < prefixes.size(); ++p) {
    const Prefix& prefix = prefixes[p];
    for (int b : prefix.blocks) {
      for (int i = 0; i < blocks[b].positions; ++i) tokens[p].push_back(blocks[b].row + i);
    }
    const PagedBlock& lead = blocks[prefix.blocks[0]];
    const int end = lists > 1 ? lead.head + 1 : args.kv_heads;
    for (int head = lead.head; head < end; head += heads) {
      for (std::int64_t begin = 0; begin < prefix.tokens; begin += batch.split) {
        const std::int64_t stop = std::min(prefix.tokens, begin + batch.split);
        std::vector<State> keep;
        for (int b : prefix.blocks) {
          const std::int64_t rows = static_cast<std::int64_t>(blocks[b].positions) * group;
          const std::int64_t count = splits_of(blocks[b]), split = begin / batch.split;
          const bool done =
              count > 1 && std::min(blocks[b].tokens, begin + batch.split) <= prefix.tokens;
          const std::int64_t stride = (done ? count : 1) * rows * words;
          float* at = states.data() + (done ? partials[b] + split * rows * words : resumes[b]);
          for (int i = 0; i < blocks[b].positions; ++i) {
            keep.push_back({at + (head - lead.head) * stride + i * group * words, stride});
          }
        }
        keeps.push_back(std::move(keep));
        PagedItem item{0,
                       batch.entry_indptr[lead.list],
                       prefix.entries,
                       static_cast<int>(tokens[p].size()),
                       head,
                       std::min(heads, end - head),
                       {},
                       tokens[p].data(),
                       keeps.back().data(),
                       {}};
        item.share = {begin, stop, 0, 1, nullptr};
        shared.push_back(item);
      }
    }
  }

  const int team = useful_threads(threads, work);
  const Scratch scratch(attention_scratch(most, most * group * heads, args.dim, args.rope.half),
                        team);
  const auto run = [&](const std::vector<PagedItem>& some) {
    parallel(static_cast<std::int64_t>(some.size()), team,
             [&](std::int64_t i, int t) { kernels().paged(args, some[i], scratch.of(t)); });
  };
  if (!shared.empty()) run(shared);
  run(items);
  if (merges.empty()) return;
  parallel(static_cast<std::int64_t>(merges.size()), team,
           [&](std::int64_t i, int) { kernels().paged_merge(args, merges[i]); });
}

void attention(DenseArgs args, std::int64_t batch, std::int64_t split, int threads) {
  prefer_huge_pages(args.o, batch * args.q_heads * args.q_len * args.dim * dtype_size(args.dtype));
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
