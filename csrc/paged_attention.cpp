// SPDX-License-Identifier: Apache-2.0
// Host side of attention over pages: cuts a call into work items whose bounds depend on each
// stream's own view and rows alone, runs them, and merges the splits in order.
#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "cascade.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/slots.h"
#include "kernels/attention/blocks.h"

namespace headrace {
namespace {

const AttentionKernels& kernels() { return HEADRACE_PICK_VNNI(attention); }

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

// A call, step by step: blocks of rows, what their views share, where their states lie, and the
// items that fill those.
class PagedCall {
 public:
  PagedCall(const PagedArgs& args, const PagedBatch& batch, int threads)
      : args_(args),
        batch_(batch),
        threads_(threads),
        group_(args.q_heads / args.kv_heads),
        block_(block_positions(group_)),
        lists_(batch.streams ? batch.lists / batch.streams : 1),
        words_(args.dim + 2) {
    cut_blocks();
    if (batch.streams > 1) {
      prefixes_ = shared_prefixes(args, batch.entry_indptr, blocks_, block_);
    }
    take_prefixes();
    heads_ = lists_ > 1 ? 1 : heads_per_item(args.kv_heads, most_ * group_, works_, threads);
    lay_out_states();
    for (std::size_t i = 0; i < blocks_.size(); ++i) add_own(i);
    tokens_.resize(prefixes_.size());
    for (std::size_t p = 0; p < prefixes_.size(); ++p) add_shared(p);
  }

  void run() const {
    const int team = useful_threads(threads_, work_);
    const Scratch scratch(
        attention_scratch(most_, most_ * group_ * heads_, args_.dim, args_.rope.half), team);
    for (const auto* some : {&shared_, &own_}) {
      parallel(static_cast<std::int64_t>(some->size()), team,
               [&](std::int64_t i, int t) { kernels().paged(args_, (*some)[i], scratch.of(t)); });
    }
    parallel(static_cast<std::int64_t>(merges_.size()), team,
             [&](std::int64_t i, int) { kernels().paged_merge(args_, merges_[i]); });
  }

 private:
  void cut_blocks() {
    for (std::int64_t b = 0; b < batch_.streams; ++b) {
      const std::int64_t begin = batch_.q_indptr[b], end = batch_.q_indptr[b + 1];
      for (std::int64_t row = begin; row < end; row += block_) {
        const int n = static_cast<int>(std::min<std::int64_t>(block_, end - row));
        const std::int64_t* order = args_.q_order + row;
        const auto [oldest, newest] = std::minmax_element(order, order + n);
        for (std::int64_t list = b * lists_; list < (b + 1) * lists_; ++list) {
          add_block(list, row, n, *oldest, *newest, n == end - begin);
        }
        most_ = std::max(most_, n);
      }
    }
  }

  void add_block(std::int64_t list, std::int64_t row, int n, std::int64_t oldest,
                 std::int64_t newest, bool whole) {
    const std::int32_t* indptr = batch_.entry_indptr;
    const std::int64_t tokens =
        visible_tokens(args_, indptr[list], indptr[list + 1], oldest, newest);
    work_ += static_cast<double>(tokens) * n * args_.q_heads / lists_ * args_.dim * 2;
    for (std::int64_t at = 0; at < tokens; at += batch_.split) {
      works_.push_back(static_cast<double>(std::min(batch_.split, tokens - at)) * n);
    }
    blocks_.push_back({list, row, tokens, n, static_cast<int>(list % lists_), whole});
  }

  void take_prefixes() {
    for (const Prefix& prefix : prefixes_) {
      int positions = 0;
      for (int b : prefix.blocks) {
        blocks_[b].shared = prefix.tokens;
        positions += blocks_[b].positions;
      }
      most_ = std::max(most_, positions);
    }
  }

  // Partial states, and states to go on from, block by block.
  void lay_out_states() {
    std::int64_t total = 0;
    for (const PagedBlock& b : blocks_) {
      const std::int64_t state = (lists_ > 1 ? 1 : args_.kv_heads) * row_words(b);
      partials_.push_back(total);
      total += splits_of(b) > 1 ? splits_of(b) * state : 0;
      resumes_.push_back(total);
      total += b.shared ? state : 0;
    }
    states_.resize(static_cast<std::size_t>(total));
  }

  void add_own(std::size_t i) {
    const PagedBlock& b = blocks_[i];
    const std::int64_t first = batch_.entry_indptr[b.list];
    const std::int64_t entries = batch_.entry_indptr[b.list + 1] - first;
    const int end = end_head(b), count = static_cast<int>(splits_of(b));
    for (int head = b.head; head < end; head += heads_) {
      PagedItem item{b.row, first, entries, b.positions, head, std::min(heads_, end - head),
                     {},    {},    {},      {}};
      item.share.splits = count;
      if (count > 1) {
        item.share.partial = states_.data() + partials_[i] + (head - b.head) * count * row_words(b);
        merges_.push_back(item);
      }
      for (int split = 0; split < count; ++split) {
        const std::int64_t begin = split * batch_.split;
        const std::int64_t stop = std::min(b.tokens, begin + batch_.split);
        // Whole splits of a shared prefix are none of the stream's own work.
        if (stop <= b.shared && count > 1) continue;
        item.share.split = split;
        item.share.begin = std::max(begin, b.shared);
        item.share.end = stop;
        float* from = states_.data() + resumes_[i] + (head - b.head) * row_words(b);
        item.resume = b.shared > begin ? from : nullptr;
        own_.push_back(item);
      }
    }
  }

  // A prefix, split as every one of its streams splits it.
  void add_shared(std::size_t p) {
    const Prefix& prefix = prefixes_[p];
    std::vector<std::int64_t>& tokens = tokens_[p];
    for (int b : prefix.blocks) {
      for (int i = 0; i < blocks_[b].positions; ++i) tokens.push_back(blocks_[b].row + i);
    }
    const PagedBlock& lead = blocks_[prefix.blocks[0]];
    const int end = end_head(lead);
    for (int head = lead.head; head < end; head += heads_) {
      for (std::int64_t begin = 0; begin < prefix.tokens; begin += batch_.split) {
        keeps_.push_back(kept(prefix, begin, head - lead.head));
        PagedItem item{0,
                       batch_.entry_indptr[lead.list],
                       prefix.entries,
                       static_cast<int>(tokens.size()),
                       head,
                       std::min(heads_, end - head),
                       {},
                       tokens.data(),
                       keeps_.back().data(),
                       {}};
        item.share = {begin, std::min(prefix.tokens, begin + batch_.split), 0, 1, nullptr};
        shared_.push_back(item);
      }
    }
  }

  // Where the states of a split of a prefix go, position by position: whole splits to the partial
  // states of their streams, the last to what these go on from.
  std::vector<State> kept(const Prefix& prefix, std::int64_t begin, int head) {
    std::vector<State> keep;
    for (int b : prefix.blocks) {
      const std::int64_t rows = row_words(blocks_[b]);
      const std::int64_t count = splits_of(blocks_[b]), split = begin / batch_.split;
      const bool done =
          count > 1 && std::min(blocks_[b].tokens, begin + batch_.split) <= prefix.tokens;
      const std::int64_t stride = (done ? count : 1) * rows;
      float* at = states_.data() + (done ? partials_[b] + split * rows : resumes_[b]);
      for (int i = 0; i < blocks_[b].positions; ++i) {
        keep.push_back({at + head * stride + i * group_ * words_, stride});
      }
    }
    return keep;
  }

  std::int64_t splits_of(const PagedBlock& b) const {
    return std::max<std::int64_t>(1, (b.tokens + batch_.split - 1) / batch_.split);
  }
  // Words of the states of a block's rows, of one kv head.
  std::int64_t row_words(const PagedBlock& b) const {
    return static_cast<std::int64_t>(b.positions) * group_ * words_;
  }
  int end_head(const PagedBlock& b) const { return lists_ > 1 ? b.head + 1 : args_.kv_heads; }

  const PagedArgs& args_;
  const PagedBatch& batch_;
  const int threads_, group_, block_;  // block: positions of one
  const std::int64_t lists_, words_;   // of a stream; of the state of a row
  int most_ = 1, heads_ = 1;           // positions and kv heads that an item has at most
  double work_ = 0;
  std::vector<double> works_;  // of every split
  std::vector<PagedBlock> blocks_;
  std::vector<Prefix> prefixes_;
  std::vector<std::int64_t> partials_, resumes_;  // by block, in words of states
  std::vector<float> states_;
  std::vector<PagedItem> own_, merges_, shared_;
  std::vector<std::vector<std::int64_t>> tokens_;  // rows of q of every prefix
  std::vector<std::vector<State>> keeps_;
};

}  // namespace

void paged_attention(const PagedArgs& args, const PagedBatch& batch, int threads) {
  check_indptr(batch.entry_indptr, batch.lists, batch.entries, "entry_indptr");
  check_indptr(batch.q_indptr, batch.streams, batch.tokens, "q_indptr");
  for (std::int64_t e = 0; e < batch.entries; ++e) {
    check_entry(args.entries + e * args.fields, e, batch.pages, args.page_size, args.fields);
  }
  check_rope(args.rope, "paged_attention");
  if (args.q_heads > 0) PagedCall(args, batch, threads).run();
}

}  // namespace headrace
