// SPDX-License-Identifier: Apache-2.0
// Host side of HSTU attention: finds the runs of cached keys, cuts a call into blocks of rows, and
// where these are few also into cuts of keys.
#include "hstu.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/attention/args.h"
#include "kernels/hstu/visible.h"

namespace headrace {
namespace {

[[noreturn]] void refuse(const std::string& argument, const std::string& expected,
                         const std::string& got) {
  throw std::invalid_argument("hstu_attention(" + argument + "): expected " + expected + ", got " +
                              got);
}

void check_indptr(const std::int32_t* p, std::int64_t sequences, std::int64_t total,
                  const char* name) {
  bool good = p[0] == 0 && p[sequences] == total;
  for (std::int64_t b = 0; b < sequences && good; ++b) good = p[b] <= p[b + 1];
  if (!good) refuse(name, "offsets that rise from 0 to " + std::to_string(total), "others");
}

// Appends the runs of keys [begin, end), by rising order.
void find_runs(const HstuBatch& batch, std::int64_t begin, std::int64_t end,
               std::vector<HstuRun>& runs) {
  if (begin == end) return;
  if (!batch.k_order) {
    runs.push_back({begin, 0, end - begin});
    return;
  }
  const std::size_t first = runs.size();
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t order = batch.k_order[i];
    if (order < 0 || order >= std::int64_t{1} << 61) {
      refuse("k_order", "indices in [0, 2**61)",
             std::to_string(order) + " for key " + std::to_string(i));
    }
    if (i > begin && order == runs.back().order + runs.back().count) {
      ++runs.back().count;
    } else {
      runs.push_back({i, order, 1});
    }
  }
  std::sort(runs.begin() + static_cast<std::ptrdiff_t>(first), runs.end(),
            [](const HstuRun& a, const HstuRun& b) { return a.order < b.order; });
  for (std::size_t i = first + 1; i < runs.size(); ++i) {
    if (runs[i].order < runs[i - 1].order + runs[i - 1].count) {
      refuse("k_order", "every index once in a sequence", std::to_string(runs[i].order) + " twice");
    }
  }
}

}  // namespace

void hstu_attention(const HstuArgs& args, const HstuBatch& batch, int threads) {
  check_indptr(batch.q_indptr, batch.sequences, batch.queries, "q_indptr");
  check_indptr(batch.k_indptr, batch.sequences, batch.keys, "k_indptr");
  std::vector<HstuRun> runs;
  std::vector<std::int64_t> cuts;
  std::vector<std::size_t> first_run, first_cut;
  std::vector<HstuRule> rules(static_cast<std::size_t>(batch.sequences), batch.rule);
  for (std::int64_t b = 0; b < batch.sequences; ++b) {
    HstuRule& rule = rules[b];
    first_run.push_back(runs.size());
    find_runs(batch, batch.k_indptr[b], batch.k_indptr[b + 1], runs);
    const bool empty = runs.size() == first_run.back();
    first_cut.push_back(cuts.size());
    for (std::size_t i = first_run.back(); i < runs.size(); ++i) {
      const std::int64_t last = (runs[i].order + runs[i].count - 1) / args.split;
      const bool had = cuts.size() > first_cut.back();
      const std::int64_t begin = runs[i].order / args.split;
      for (std::int64_t cut = had ? std::max(begin, cuts.back() + 1) : begin; cut <= last; ++cut) {
        cuts.push_back(cut);
      }
    }
    rule.length = empty ? 0 : runs.back().order + runs.back().count;
    const std::int64_t rows = batch.q_indptr[b + 1] - batch.q_indptr[b];
    const std::int64_t targets = batch.num_targets ? batch.num_targets[b] : 0;
    if (rows > rule.length) {
      refuse("q_indptr", "at most " + std::to_string(rule.length) + " queries, as there are tokens",
             std::to_string(rows) + " in sequence " + std::to_string(b));
    }
    if (targets < 0 || targets > rule.length) {
      refuse("num_targets", "0 to " + std::to_string(rule.length),
             std::to_string(targets) + " in sequence " + std::to_string(b));
    }
    rule.history = rule.length - targets;
    rule.context = std::min(rule.context, rule.history);
  }
  first_run.push_back(runs.size());
  first_cut.push_back(cuts.size());

  std::vector<HstuItem> blocks;
  double work = 0;
  for (std::int64_t b = 0; b < batch.sequences; ++b) {
    const std::int64_t begin = batch.q_indptr[b], rows = batch.q_indptr[b + 1] - begin;
    const HstuRule& rule = rules[b];
    for (int head = 0; head < args.heads; ++head) {
      // The last rows see most; they go first, so that the threads end together.
      for (std::int64_t i = (rows - 1) / kHstuRows * kHstuRows; rows > 0 && i >= 0;
           i -= kHstuRows) {
        const std::int64_t order = rule.length - rows + i;
        const HstuSeen seen = hstu_seen(rule, order);
        HstuItem item{};
        item.row = begin + i;
        item.order = order;
        item.rule = &rule;
        item.runs = runs.data() + first_run[b];
        item.run_count = static_cast<std::int64_t>(first_run[b + 1] - first_run[b]);
        item.cuts = cuts.data() + first_cut[b];
        item.last = static_cast<std::int64_t>(first_cut[b + 1] - first_cut[b]);
        item.head = head;
        item.rows = static_cast<int>(std::min<std::int64_t>(kHstuRows, rows - i));
        work += static_cast<double>(seen.hi - seen.lo + 1) * item.rows * (args.dim + args.v_dim);
        blocks.push_back(item);
      }
    }
  }
  const HstuKernels& kernels = HEADRACE_PICK(hstu);
  const int team = useful_threads(threads, work);
  const Scratch scratch(hstu_scratch(args.dim, args.v_dim, kTile), team);
  const auto count = static_cast<std::int64_t>(blocks.size());
  if (count >= 4 * team || team == 1) {
    parallel(count, team,
             [&](std::int64_t i, int t) { kernels.run(args, blocks[i], scratch.of(t)); });
    return;
  }
  // Few blocks: every cut is an item of its own. The sums are the same, in the same order.
  std::vector<HstuItem> items;
  std::int64_t words = 0;
  for (const HstuItem& block : blocks) words += block.last * block.rows * args.v_dim;
  std::vector<float> partial(static_cast<std::size_t>(words));
  words = 0;
  for (HstuItem& block : blocks) {
    block.partial = partial.data() + words;
    words += block.last * block.rows * args.v_dim;
    for (std::int64_t cut = 0; cut < block.last; ++cut) {
      items.push_back(block);
      items.back().first = cut;
      items.back().last = cut + 1;
    }
  }
  parallel(static_cast<std::int64_t>(items.size()), team,
           [&](std::int64_t i, int t) { kernels.run(args, items[i], scratch.of(t)); });
  parallel(count, team, [&](std::int64_t i, int) { kernels.merge(args, blocks[i]); });
}

}  // namespace headrace
