// SPDX-License-Identifier: Apache-2.0
#include "score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "score_rows.h"

namespace headrace {

void block_score(BlockScoreArgs a, std::int64_t batch, int threads) {
  if (batch * a.out_heads * a.blocks == 0) return;
  const ScoreKernels& kernels = score_kernels();
  const bool pooled = a.block_size == 1 && a.reduce != kQueryMax;
  const bool merged = pooled && (a.heads == kGroupSum || a.heads == kHeadSum);
  a.group = merged ? 1 : a.q_heads / a.kv_heads;
  a.folded = static_cast<int>(pooled ? a.group : a.group * a.queries);
  a.popcount = counts_bits_of_vectors();
  const std::int64_t summed = a.q_heads / a.kv_heads * a.queries / a.folded;
  a.bit_unit = summed % 2 ? 1 : 2;  // weights are odd or even as their number is
  for (std::int64_t n = summed / a.bit_unit; n > 0; n /= 2) ++a.planes;
  const std::int64_t width = a.dtype == kScoreInt ? bit_record(a) : a.dim * (a.upper ? 2 : 1);
  const Scratch folds(batch * a.kv_heads * a.folded * width, 1);
  a.folds = folds.of(0);
  parallel(batch,
           useful_threads(threads, static_cast<double>(batch) * a.q_heads * a.queries * a.dim),
           [&](std::int64_t b, int) { kernels.fold(a, b); });

  // Tiles stay whole, so that no score depends on how the work is cut.
  const std::int64_t spans =
      a.dtype == kScoreInt ? a.rows / (8 * threads * kScoreSpan) : a.rows * a.dim >> 17;
  const std::int64_t most = a.dtype == kScoreInt ? 64 : 8;  // a thread reads on in every head
  const std::int64_t whole = kScoreSpan * std::clamp<std::int64_t>(spans, 1, most);
  const std::int64_t step =
      a.block_size == 1 ? whole : std::max<std::int64_t>(1, 512 / a.block_size);
  const std::int64_t parts = (a.blocks + step - 1) / step;
  const double work = static_cast<double>(batch) * a.kv_heads * a.rows * a.dim * (a.folded + 1);
  const int team = useful_threads(threads, work);
  const Scratch scratch(block_scratch(a), team);
  parallel(batch * parts, team, [&](std::int64_t i, int t) {
    const std::int64_t begin = i % parts * step;
    kernels.blocks(a, i / parts, begin, std::min(begin + step, a.blocks), scratch.of(t));
  });
}

void segment_reduce(const SegmentArgs& a, const std::int32_t* ids, std::int64_t ids_stride,
                    std::int64_t rows, std::int64_t segments, std::int32_t* count,
                    std::int64_t count_stride, int threads) {
  const auto known = [&](std::int64_t id) { return id >= 0 && id < segments; };
  std::vector<std::int64_t> start(static_cast<std::size_t>(segments) + 1);
  for (std::int64_t i = 0; i < rows; ++i) {
    if (known(ids[i * ids_stride])) ++start[ids[i * ids_stride] + 1];
  }
  std::vector<std::int64_t> used;
  for (std::int64_t s = 0; s < segments; ++s) {
    if (start[s + 1] == 0) continue;
    used.push_back(s);
    if (count) count[s * count_stride] += static_cast<std::int32_t>(start[s + 1]);
  }
  for (std::int64_t s = 0; s < segments; ++s) start[s + 1] += start[s];
  std::vector<std::int32_t> order(static_cast<std::size_t>(start[segments]));
  std::vector<std::int64_t> at(start.begin(), start.end() - 1);
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t id = ids[i * ids_stride];
    if (known(id)) order[at[id]++] = static_cast<std::int32_t>(i);
  }
  if ((!a.total && !a.unit && !a.low && !a.high) || a.heads == 0) return;
  const ScoreKernels& kernels = score_kernels();
  const double work = static_cast<double>(order.size()) * a.heads * a.dim;
  // Rows of all heads lie side by side; a head apart only where segments are too few to share.
  const bool apart = static_cast<std::int64_t>(used.size()) < 4 * threads;
  const std::int64_t parts = apart ? a.heads : 1, step = a.heads / parts;
  const std::int64_t items = static_cast<std::int64_t>(used.size()) * parts;
  parallel(items, useful_threads(threads, work), [&](std::int64_t i, int) {
    const std::int64_t s = used[i / parts];
    const int first = static_cast<int>(i % parts * step);
    kernels.segment(a, s, first, first + static_cast<int>(step), order.data() + start[s],
                    start[s + 1] - start[s]);
  });
}

void attention_mass(MassArgs a, const MassPlan& plan, std::int64_t batch, int threads) {
  std::vector<std::int32_t> lengths(static_cast<std::size_t>(batch),
                                    static_cast<std::int32_t>(a.keys));
  for (std::int64_t b = 0; b < batch && a.lengths; ++b) {
    lengths[b] = std::clamp<std::int32_t>(a.lengths[b * a.lengths_stride], 0, lengths[b]);
  }
  a.lengths = lengths.data();
  a.lengths_stride = 1;
  constexpr float kNone = -std::numeric_limits<float>::infinity(), kLog2e = 1.44269504088896f;
  const ScoreKernels& kernels = score_kernels();
  const std::int64_t group = a.q_heads / a.kv_heads, rows = group * a.queries;
  const std::int64_t heads = batch * a.kv_heads,
                     kept = std::max<std::int64_t>(a.keys - plan.exclude, 0);
  const Scratch folds(heads * rows * a.dim, 1), mass(heads * a.keys, 1);
  std::vector<float> norms(static_cast<std::size_t>(heads * rows), kNone);
  a.folds = folds.of(0);
  a.norms = norms.data();
  a.mass = mass.of(0);
  const double work = static_cast<double>(heads) * rows * a.keys * a.dim;
  const int team = useful_threads(threads, work);
  parallel(batch, team, [&](std::int64_t b, int) { kernels.mass_queries(a, b); });

  constexpr std::int64_t kChunk = 1024;  // keys; cut alike whatever the threads
  const std::int64_t chunks = (a.keys + kChunk - 1) / kChunk;
  const Scratch scratch(mass_scratch(a.dim), team);
  // Of few rows a key costs more than its logits, which then are kept from the sums to the masses:
  // those of as many heads at a time as a cache holds, or as all threads want.
  constexpr std::int64_t kCached = std::int64_t{1} << 18, kMost = std::int64_t{1} << 24;
  const std::int64_t tiles = (a.keys + kScoreTile - 1) / kScoreTile;
  const std::int64_t wanted = team > 1 ? (2 * team + chunks - 1) / chunks : 1;
  a.head_logits = tiles * kScoreTile * rows;
  const bool kept_logits = !plan.lse && a.head_logits > 0 && a.head_logits <= kMost;
  const std::int64_t round =
      kept_logits ? std::clamp(kCached / a.head_logits, std::min(wanted, heads), heads) : heads;
  const Scratch logits(kept_logits ? round * a.head_logits : 0, 1);
  a.logits = logits.of(0);
  const auto each_chunk = [&](std::int64_t count, const auto& body) {
    parallel(count * chunks, team, [&](std::int64_t i, int t) {
      const std::int64_t head = a.first_head + i / chunks, begin = i % chunks * kChunk;
      const std::int64_t b = head / a.kv_heads;
      const std::int64_t length = lengths[b];
      const std::int64_t end = std::min(begin + kChunk, length);
      if (begin < end) body(i, b, static_cast<int>(head % a.kv_heads), begin, end, scratch.of(t));
    });
  };
  if (plan.lse) {
    for (std::int64_t i = 0; i < heads * rows; ++i) {
      const std::int64_t w = i % a.queries, h = i / a.queries % a.q_heads,
                         b = i / (a.queries * a.q_heads);
      norms[i] =
          plan.lse[b * plan.lse_strides[0] + h * plan.lse_strides[1] + w * plan.lse_strides[2]] *
          kLog2e;
    }
  }
  std::vector<float> top(static_cast<std::size_t>(plan.lse ? 0 : round * chunks * rows));
  std::vector<float> sum(top.size());
  for (a.first_head = 0; a.first_head < heads; a.first_head += round) {
    const std::int64_t count = std::min(round, heads - a.first_head);
    if (!plan.lse) {
      std::fill(top.begin(), top.end(), kNone);
      a.summing = true;
      each_chunk(count, [&](std::int64_t i, std::int64_t b, int kv, std::int64_t begin,
                            std::int64_t end, float* own) {
        kernels.mass_sums(a, b, kv, begin, end, top.data() + i * rows, sum.data() + i * rows, own);
      });
      a.summing = false;
      for (std::int64_t i = 0; i < count * rows; ++i) {
        const std::int64_t base = i / rows * chunks * rows + i % rows;
        float most = kNone;
        for (std::int64_t c = 0; c < chunks; ++c) most = std::max(most, top[base + c * rows]);
        double total = 0;
        for (std::int64_t c = 0; c < chunks && most != kNone; ++c) {
          total +=
              std::exp2(static_cast<double>(top[base + c * rows]) - most) * sum[base + c * rows];
        }
        if (total > 0) {
          norms[a.first_head * rows + i] = static_cast<float>(most + std::log2(total));
        }
      }
    }
    each_chunk(count,
               [&](std::int64_t, std::int64_t b, int kv, std::int64_t begin, std::int64_t end,
                   float* own) { kernels.mass(a, b, kv, begin, end, own); });
  }
  const float part = plan.mean ? 1.f / static_cast<float>(rows) : 1.f;
  parallel(heads, useful_threads(threads, static_cast<double>(heads) * a.keys * plan.pool),
           [&](std::int64_t i, int) {
             const float* x = a.mass + i * a.keys;
             const std::int64_t b = i / a.kv_heads, length = lengths[b];
             const std::int64_t there = std::max<std::int64_t>(length - plan.exclude, 0);
             const std::int64_t* s = plan.past_strides;
             const float* past = plan.past ? plan.past + b * s[0] + i % a.kv_heads * s[1] : nullptr;
             for (std::int64_t j = 0; j < kept; ++j) {
               const std::int64_t first = std::max<std::int64_t>(j - plan.pool / 2, 0);
               const std::int64_t last = std::min(j + plan.pool / 2 + 1, there);
               float value = 0.f;
               for (std::int64_t n = first; n < last; ++n)
                 value = plan.pool_largest ? std::max(value, x[n]) : value + x[n];
               if (!plan.pool_largest) value /= static_cast<float>(plan.pool);
               value = j < there ? value * part : 0.f;
               if (past && j < plan.past_keys) value += plan.decay * past[j * s[2]];
               plan.out[i * kept + j] = value;
             }
           });
}

void assign(AssignArgs a, std::int64_t batch, int threads) {
  if (batch * a.rows == 0) return;
  const ScoreKernels& kernels = score_kernels();
  a.popcount = counts_bits_of_vectors();
  a.tiles = (a.candidates + kScoreTile - 1) / kScoreTile;
  const std::int64_t sets = a.c_strides[0] == 0 ? 1 : batch;
  const std::int64_t parts = (a.rows + kAssignRows - 1) / kAssignRows;
  const double work = static_cast<double>(batch) * a.rows * a.candidates * a.dim;
  const int team = useful_threads(threads, work);
  // Columns that meet rows but once are made where they do, if that leaves no thread idle.
  const bool in_place = assign_in_place(a), once = parts == 1 && sets == batch && team <= batch;
  const std::int64_t kept = in_place || once ? 0 : sets * a.tiles;
  const Scratch columns(kept * assign_tile(a.dim), 1);
  a.columns = columns.of(0);
  parallel(kept, team,
           [&](std::int64_t i, int) { kernels.candidates(a, i / a.tiles, i % a.tiles); });
  const Scratch scratch(assign_scratch(a.dim, once), team);
  parallel(batch * parts, team, [&](std::int64_t i, int t) {
    const std::int64_t begin = i % parts * kAssignRows;
    kernels.assign(a, i / parts, begin, std::min<std::int64_t>(begin + kAssignRows, a.rows),
                   scratch.of(t));
  });
}

}  // namespace headrace
