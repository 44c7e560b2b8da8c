// SPDX-License-Identifier: Apache-2.0
#include "score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "bind/call.h"

namespace headrace::bind {

namespace {

constexpr std::int64_t kWords = 16;  // of bits in a row, at most

// The dtype of rows as the kernels have it.
int dtype_of(const Given& rows) {
  return rows.dtype == kInt32 ? int{headrace::kScoreInt} : rows.dtype;
}

// Whether there is a kernel for rows of words of bits, or of so many numbers.
bool wide(bool bits, std::int64_t dim) {
  return bits ? dim >= 1 && dim <= kWords : sixteens(dim, INT64_MAX);
}

namespace blocks {
HEADRACE_IN(q, keys, upper, index, lengths, heads, queries, block_size, scale, out);

constexpr const char* kHeads[] = {"each", "group", "group_max", "sum", "max"};  // as ScoreHeads
constexpr const char* kQueries[] = {"mean", "sum", "max"};                      // as ScoreQueries

std::int64_t rows_of(const In& in) { return in.index.there ? in.index.size(1) : in.keys.size(2); }

bool serves(const In& in, std::int64_t* told) {
  const Given &q = in.q, &keys = in.keys;
  const bool bits = q.dtype == kInt32;
  const int heads = which(in.heads, kHeads);
  if (bits != (keys.dtype == kInt32) || (bits && in.upper.there) || !wide(bits, q.size(3)) ||
      !groups(q.size(1), keys.size(1)) || q.size(1) == 0 || q.size(2) == 0 || heads < 0 ||
      which(in.queries, kQueries) < 0 || in.block_size.whole < 1 || !finite(in.scale) ||
      !(in.scale.number > 0) || !spreads(keys, q, 1) || !spreads(in.index, q, 1) ||
      (in.upper.there && in.upper.size(0) != keys.size(0))) {
    return false;
  }
  const std::int64_t made[] = {q.size(1), keys.size(1), keys.size(1), 1, 1};
  told[0] = made[heads];
  told[1] = blocks_of(rows_of(in), in.block_size.whole);
  return true;
}

void run(const In& in, int threads) {
  headrace::BlockScoreArgs args{};
  args.q = in.q;
  args.keys = in.keys;
  args.upper = in.upper;
  args.index = in.index.as<const std::int32_t>();
  args.lengths = in.lengths.as<const std::int32_t>();
  args.out = in.out.as<float>();
  strides_of(in.q, 3, args.q_strides, false);
  strides_of(in.keys, 3, args.key_strides, false);
  strides_of(in.upper, 3, args.upper_strides, false);
  if (in.keys.size(0) == 1) args.key_strides[0] = args.upper_strides[0] = 0;
  args.index_stride = in.index.step(0);
  args.lengths_stride = in.lengths.stride(0);
  args.q_heads = static_cast<int>(in.q.size(1));
  args.kv_heads = static_cast<int>(in.keys.size(1));
  args.out_heads = static_cast<int>(in.out.size(1));
  args.queries = in.q.size(2);
  args.rows = rows_of(in);
  args.stored = in.keys.size(2);
  args.dim = in.q.size(3);
  args.block_size = std::min(in.block_size.whole, std::max<std::int64_t>(1, args.rows));
  args.blocks = in.out.size(2);
  args.q_dtype = dtype_of(in.q);
  args.dtype = dtype_of(in.keys);
  args.heads = which(in.heads, kHeads);
  args.reduce = which(in.queries, kQueries);
  args.scale = static_cast<float>(in.scale.number);
  headrace::block_score(args, in.q.size(0), threads);
}
}  // namespace blocks

namespace segments {
HEADRACE_IN(x, ids, total, low, high, unit, count);

// Whether a state has memory of its own for every segment and head.
bool own(const Given& state) {
  bool good = true;
  for (int i = 0; state.there && i < state.at.dims; ++i) {
    good &= state.size(i) <= 1 || state.stride(i) != 0;
  }
  return good;
}

bool bound(const Given& state, const Given& x) {
  return !state.there || state.dtype == headrace::kF32 || state.dtype == x.dtype;
}

bool serves(const In& in, std::int64_t*) {
  bool some = false, good = bound(in.low, in.x) && bound(in.high, in.x);
  for (const Given* state : {&in.total, &in.low, &in.high, &in.unit, &in.count}) {
    some |= state->there;
    good &= own(*state);
  }
  return some && good;
}

void run(const In& in, int threads) {
  headrace::SegmentArgs args{};
  args.x = in.x;
  args.total = in.total.as<float>();
  args.low = in.low.as<void>();
  args.high = in.high.as<void>();
  args.unit = in.unit.as<float>();
  strides_of(in.x, 2, args.x_strides, false);
  strides_of(in.total, 2, args.total_strides, false);
  strides_of(in.low, 2, args.low_strides, false);
  strides_of(in.high, 2, args.high_strides, false);
  strides_of(in.unit, 2, args.unit_strides, false);
  args.heads = static_cast<int>(in.x.size(1));
  args.dim = in.x.size(2);
  args.dtype = in.x.dtype;
  args.low_dtype = in.low.there ? in.low.dtype : int{headrace::kF32};
  args.high_dtype = in.high.there ? in.high.dtype : int{headrace::kF32};
  std::int64_t count = 0;
  for (const Given* state : {&in.total, &in.low, &in.high, &in.unit, &in.count}) {
    if (state->there) count = state->size(0);
  }
  headrace::segment_reduce(args, in.ids.as<const std::int32_t>(), in.ids.stride(0), in.x.size(0),
                           count, in.count.as<std::int32_t>(), in.count.stride(0), threads);
}
}  // namespace segments

namespace mass {
HEADRACE_IN(q, k, lse, past, lengths, causal, reduce, exclude, pool, pooling, decay, scale, out);

constexpr const char* kReduce[] = {"mean", "sum", "max"};
constexpr const char* kPooling[] = {"mean", "max"};

bool serves(const In& in, std::int64_t* told) {
  if (!sixteens(in.q.size(3), INT64_MAX) || in.q.size(1) == 0 ||
      !groups(in.q.size(1), in.k.size(1)) || in.q.size(2) == 0 || which(in.reduce, kReduce) < 0 ||
      which(in.pooling, kPooling) < 0 || in.exclude.whole < 0 || in.pool.whole < 1 ||
      in.pool.whole % 2 == 0 || !finite(in.decay) || !finite(in.scale)) {
    return false;
  }
  told[0] = std::max<std::int64_t>(in.k.size(2) - in.exclude.whole, 0);
  return !in.past.there || in.past.size(2) <= told[0];
}

void run(const In& in, int threads) {
  headrace::MassArgs args{};
  args.q = in.q;
  args.k = in.k;
  args.lengths = in.lengths.as<const std::int32_t>();
  std::copy(in.q.at.strides, in.q.at.strides + 3, args.q_strides);
  std::copy(in.k.at.strides, in.k.at.strides + 3, args.k_strides);
  args.lengths_stride = in.lengths.stride(0);
  args.q_heads = static_cast<int>(in.q.size(1));
  args.kv_heads = static_cast<int>(in.k.size(1));
  args.queries = in.q.size(2);
  args.keys = in.k.size(2);
  args.dim = in.q.size(3);
  args.dtype = in.q.dtype;
  args.causal = in.causal.whole;
  args.largest = which(in.reduce, kReduce) == 2;
  args.scale = scale_of(in.scale, in.q.size(3));
  headrace::MassPlan plan{};
  plan.lse = in.lse.as<const float>();
  plan.past = in.past.as<const float>();
  for (int i = 0; i < 3; ++i) {
    plan.lse_strides[i] = in.lse.stride(i);
    plan.past_strides[i] = in.past.stride(i);
  }
  plan.past_keys = in.past.there ? in.past.size(2) : 0;
  plan.exclude = std::min(in.exclude.whole, args.keys);
  plan.mean = which(in.reduce, kReduce) == 0;
  plan.pool_largest = which(in.pooling, kPooling) == 1;
  // A pool beyond that sees no more.
  plan.pool = plan.pool_largest ? std::min(in.pool.whole, 2 * args.keys + 1) : in.pool.whole;
  plan.decay = static_cast<float>(in.decay.number);
  plan.out = in.out.as<float>();
  headrace::attention_mass(args, plan, in.q.size(0), threads);
}
}  // namespace mass

namespace assigning {
HEADRACE_IN(x, c, lengths, metric, threshold, causal, bipartite, id, similarity);

constexpr const char* kMetrics[] = {"cos", "dot", "l2", "hamming"};  // as AssignMetric

bool serves(const In& in, std::int64_t* told) {
  const int metric = which(in.metric, kMetrics);
  const bool bits = metric == headrace::kHamming, apart = in.bipartite.whole;
  if (metric < 0 || bits != (in.x.dtype == kInt32) || !wide(bits, in.x.size(2)) ||
      !(in.c.there || in.causal.whole || apart) || (apart && (in.c.there || in.causal.whole)) ||
      !spreads(in.c, in.x, 1) || (in.threshold.there && std::isnan(in.threshold.number))) {
    return false;
  }
  told[0] = apart ? (in.x.size(1) + 1) / 2 : in.x.size(1);
  return true;
}

void run(const In& in, int threads) {
  const bool apart = in.bipartite.whole;  // rows 0, 2, 4... of x from those between
  const Given& c = in.c.there ? in.c : in.x;
  const std::int64_t step = apart ? 2 : 1;
  headrace::AssignArgs args{};
  args.x = in.x;
  args.c = c.as<const char>() + (apart ? in.x.stride(1) * kItems[in.x.dtype] : 0);
  args.lengths = in.lengths.as<const std::int32_t>();
  args.id = in.id.as<std::int32_t>();
  args.similarity = in.similarity.as<float>();
  args.x_strides[0] = in.x.stride(0);
  args.x_strides[1] = step * in.x.stride(1);
  args.c_strides[0] = c.step(0);
  args.c_strides[1] = step * c.stride(1);
  args.lengths_stride = in.lengths.stride(0);
  args.rows = in.id.size(1);
  args.candidates = c.size(1) / step;
  args.dim = in.x.size(2);
  args.metric = which(in.metric, kMetrics);
  args.dtype = dtype_of(in.x);
  args.threshold = in.threshold.there ? static_cast<float>(in.threshold.number)
                                      : -std::numeric_limits<float>::infinity();
  args.causal = in.causal.whole;
  args.id_step = static_cast<int>(step);
  args.id_first = static_cast<int>(step) - 1;
  headrace::assign(args, in.x.size(0), threads);
}
}  // namespace assigning

}  // namespace

void score_family() {
  bind_op<&blocks::serves, &blocks::run>("block_score");
  bind_op<&segments::serves, &segments::run>("segment_reduce");
  bind_op<&mass::serves, &mass::run>("attention_mass");
  bind_op<&assigning::serves, &assigning::run>("assign");
}

}  // namespace headrace::bind
