// SPDX-License-Identifier: Apache-2.0
// Host side of multi-adapter products: sorts the tokens by what they use, cuts the runs into blocks
// and shares these out.
#include "lora.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {
namespace {

[[noreturn]] void refuse(const LoraBatch& batch, const std::string& arg, const std::string& wanted,
                         const std::string& got) {
  throw std::invalid_argument(std::string(batch.op) + "(" + arg + "): expected " + wanted +
                              ", got " + got);
}

std::string between(std::int64_t lo, std::int64_t end) {
  return "values in [" + std::to_string(lo) + ", " + std::to_string(end) + ")";
}

void check(const LoraArgs& args, const LoraBatch& batch) {
  for (std::int64_t i = 0; i < batch.tokens * batch.width; ++i) {
    const std::int32_t slot = batch.slots[i];
    if (slot >= -1 && slot < batch.slots_count) continue;
    refuse(batch, "slots", between(-1, batch.slots_count),
           std::to_string(slot) + " for token " + std::to_string(i / batch.width));
  }
  if (batch.slice_ends) {
    std::int32_t last = 0;
    for (int j = 0; j < args.slices; ++j) {
      const std::int32_t end = batch.slice_ends[j];
      if (end < last || (j + 1 == args.slices && end != args.outputs)) {
        refuse(batch, "slice_ends", "columns that rise to " + std::to_string(args.outputs),
               std::to_string(end) + " for slice " + std::to_string(j));
      }
      last = end;
    }
  }
  if (!batch.rows) return;
  const std::int32_t* p = batch.row_indptr;
  bool rises = p[0] == 0 && p[batch.slots_count] == batch.rows_count;
  for (std::int64_t s = 0; s < batch.slots_count; ++s) rises &= p[s] <= p[s + 1];  // no branch
  if (!rises) {
    refuse(batch, "row_indptr", "offsets that rise from 0 to " + std::to_string(batch.rows_count),
           "others");
  }
}

int rank_of(const LoraBatch& batch, const LoraArgs& args, std::int32_t slot, int slice) {
  const std::int64_t rows =
      batch.rows ? batch.row_indptr[slot + 1] - batch.row_indptr[slot] : batch.stack_rank;
  if (!batch.ranks) return static_cast<int>(rows);
  const std::int32_t rank = batch.ranks[static_cast<std::int64_t>(slot) * args.slices + slice];
  if (rank >= 0 && rank <= rows) return rank;
  refuse(batch, "ranks", "0 to " + std::to_string(rows) + " for slot " + std::to_string(slot),
         std::to_string(rank));
}

// Tokens that use the same adapters, in the order of the batch; what it lists lies in Lists.
struct Segment {
  std::int64_t begin, end;  // in the order of tokens
  std::size_t rank_rows, starts, bias_rows;
  std::int32_t gain_row;
};
struct Lists {
  std::vector<std::int32_t> rank_rows, starts, bias_rows;
  std::vector<std::uint8_t> adapter;  // beside rank_rows
};

Segment segment_of(const LoraArgs& args, const LoraBatch& batch, const std::int32_t* slots,
                   Lists& to) {
  Segment s{0, 0, to.rank_rows.size(), to.starts.size(), to.bias_rows.size(), -1};
  to.starts.push_back(0);
  for (int j = 0; j < args.slices; ++j) {
    for (int w = 0; w < batch.width; ++w) {
      const std::int32_t slot = slots[w];
      if (slot < 0) continue;
      const int rank = rank_of(batch, args, slot, j);
      const std::int64_t first = batch.rows ? batch.row_indptr[slot] : slot * batch.stack_rank;
      const std::size_t at = to.rank_rows.size();
      to.rank_rows.resize(at + rank);
      to.adapter.resize(at + rank, static_cast<std::uint8_t>(w));
      for (int r = 0; r < rank; ++r) {
        const std::int64_t row = batch.rows ? batch.rows[first + r] : first + r;
        if (row < 0 || row >= batch.pool_rows) {
          refuse(batch, "rows", between(0, batch.pool_rows),
                 std::to_string(row) + " for slot " + std::to_string(slot));
        }
        to.rank_rows[at + r] = static_cast<std::int32_t>(row);
      }
    }
    to.starts.push_back(static_cast<std::int32_t>(to.rank_rows.size() - s.rank_rows));
  }
  for (int w = 0; w < batch.width; ++w) {
    std::int32_t bias = -1, gain = -1;
    if (batch.epilogue && slots[w] >= 0) {
      bias = batch.epilogue[slots[w] * 2];
      gain = batch.epilogue[slots[w] * 2 + 1];
    }
    if (bias < -1 || bias >= batch.biases) {
      refuse(batch, "epilogue", "bias rows in [-1, " + std::to_string(batch.biases) + ")",
             std::to_string(bias));
    }
    if (gain < -1 || gain >= batch.gains) {
      refuse(batch, "epilogue", "gain rows in [-1, " + std::to_string(batch.gains) + ")",
             std::to_string(gain));
    }
    to.bias_rows.push_back(bias);
    if (gain < 0) continue;
    if (std::count_if(slots, slots + batch.width, [](std::int32_t x) { return x >= 0; }) > 1) {
      refuse(batch, "epilogue", "no gain where a token has several adapters",
             "gain row " + std::to_string(gain));
    }
    s.gain_row = gain;
  }
  return s;
}

}  // namespace

void lora(const LoraArgs& given, const LoraBatch& batch, int threads) {
  check(given, batch);
  LoraArgs args = given;
  if (args.a_scale) args.a_groups = args.depth / args.a_group;
  if (args.b_scale) args.b_groups = args.outputs / args.b_group;
  const int width = batch.width;
  const auto tuple = [&](std::int64_t t) { return batch.slots + t * width; };
  std::vector<std::int32_t> order;
  order.reserve(static_cast<std::size_t>(batch.tokens));
  for (std::int64_t t = 0; t < batch.tokens; ++t) {
    if (std::any_of(tuple(t), tuple(t) + width, [](std::int32_t s) { return s >= 0; })) {
      order.push_back(static_cast<std::int32_t>(t));
    }
  }
  if (order.empty()) return;
  const auto before = [&](std::int32_t a, std::int32_t b) {
    return std::lexicographical_compare(tuple(a), tuple(a) + width, tuple(b), tuple(b) + width);
  };
  if (!std::is_sorted(order.begin(), order.end(), before)) {
    std::stable_sort(order.begin(), order.end(), before);
  }

  std::vector<Segment> segments;
  Lists lists;
  const std::int64_t used = static_cast<std::int64_t>(order.size());
  std::int64_t bridge_words = 0;
  double work = 0;
  for (std::int64_t i = 0; i < used;) {
    std::int64_t end = i + 1;
    while (end < used && std::equal(tuple(order[i]), tuple(order[i]) + width, tuple(order[end]))) {
      ++end;
    }
    segments.push_back(segment_of(args, batch, tuple(order[i]), lists));
    segments.back().begin = i;
    segments.back().end = end;
    const double rows = static_cast<double>(lists.starts.back());
    work += (end - i) * (rows * args.depth + rows / args.slices * args.outputs);
    bridge_words += (end - i) * static_cast<std::int64_t>(rows);
    i = end;
  }

  std::vector<float> factors(static_cast<std::size_t>(used * width));
  for (std::int64_t i = 0; i < used; ++i) {
    for (int w = 0; w < width; ++w) {
      const std::int32_t slot = tuple(order[i])[w];
      const float weight = batch.weights ? batch.weights[order[i] * width + w] : 1.f;
      factors[i * width + w] = slot < 0 ? 0.f : batch.scale[slot] * weight;
    }
  }
  const std::int32_t whole = static_cast<std::int32_t>(args.outputs);
  std::vector<float> bridge(static_cast<std::size_t>(bridge_words));
  const int team = useful_threads(threads, work);
  // Large blocks read weights less often; small ones let threads end together.
  const std::int64_t share = team == 1 ? used : used / (6 * team);
  const std::int64_t most =
      share < 24 ? std::clamp<std::int64_t>(used / (2 * team), 16, kLoraTokens)
                 : std::min<std::int64_t>(share / kLoraTogether * kLoraTogether, kLoraTokens);
  std::vector<LoraBlock> blocks;
  float* at = bridge.data();
  for (const Segment& s : segments) {
    // As long as one another, and of a long run as many for each thread.
    const std::int64_t tokens = s.end - s.begin;
    std::int64_t pieces = (tokens + most - 1) / most;
    if (pieces > team) pieces = (pieces + team - 1) / team * team;
    const std::int64_t step = (tokens + pieces - 1) / pieces;
    for (std::int64_t i = s.begin; i < s.end; i += step) {
      const int count = static_cast<int>(std::min<std::int64_t>(step, s.end - i));
      const std::int32_t* starts = lists.starts.data() + s.starts;
      blocks.push_back({order.data() + i, count, lists.rank_rows.data() + s.rank_rows, starts,
                        batch.slice_ends ? batch.slice_ends : &whole, factors.data() + i * width,
                        lists.adapter.data() + s.rank_rows, lists.bias_rows.data() + s.bias_rows,
                        s.gain_row, width, at, nullptr});
      at += static_cast<std::int64_t>(count) * starts[args.slices];
    }
  }

  const auto& kernels = HEADRACE_PICK_BF16(lora);
  const Scratch scratch(lora_scratch(args.depth), team);
  const std::int64_t count = static_cast<std::int64_t>(blocks.size());
  const auto ranks = [&](const LoraBlock& b) { return b.starts[args.slices]; };
  if (count >= 2 * team) {
    // A thread takes its next block before it works on the one it has: the kernels read ahead.
    std::atomic<std::int64_t> taken{0};
    parallel(team, team, [&](std::int64_t, int t) {
      for (std::int64_t own = taken++, after; own < count; own = after) {
        after = taken++;
        LoraBlock block = blocks[own];
        if (after < count) block.next = &blocks[after];
        kernels.shrink(args, block, 0, ranks(block), scratch.of(t));
        kernels.expand(args, block, 0, args.outputs, scratch.of(t));
      }
    });
    return;
  }
  // Few blocks: each is cut up, along its rank rows and then along the columns.
  struct Part {
    std::int64_t block, first, last;
  };
  std::vector<Part> down, up;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t rows = ranks(blocks[i]);
    const std::int64_t step =
        std::max<std::int64_t>((rows + 2 * team - 1) / (2 * team) + 7, 8) / 8 * 8;
    for (std::int64_t r = 0; r < rows; r += step) down.push_back({i, r, std::min(rows, r + step)});
    const std::int64_t strip = ((args.outputs + 4 * team - 1) / (4 * team) + 63) / 64 * 64;
    for (std::int64_t n = 0; n < args.outputs; n += strip) {
      up.push_back({i, n, std::min(args.outputs, n + strip)});
    }
  }
  parallel(static_cast<std::int64_t>(down.size()), team, [&](std::int64_t i, int t) {
    const Part& p = down[i];
    kernels.shrink(args, blocks[p.block], static_cast<int>(p.first), static_cast<int>(p.last),
                   scratch.of(t));
  });
  parallel(static_cast<std::int64_t>(up.size()), team, [&](std::int64_t i, int t) {
    const Part& p = up[i];
    kernels.expand(args, blocks[p.block], p.first, p.last, scratch.of(t));
  });
}

}  // namespace headrace
