// SPDX-License-Identifier: Apache-2.0
#include "score.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "bind/call.h"

namespace headrace::bind {

namespace {

// sizes: batch, q_heads, kv_heads, out_heads, queries, rows, stored, dim, block_size, blocks
void block_score(Address q, Strides3 q_strides, Address keys, Strides3 key_strides, Address upper,
                 Strides3 upper_strides, Address index, std::int64_t index_stride, Address lengths,
                 std::int64_t lengths_stride, std::array<std::int64_t, 10> sizes, int q_dtype,
                 int dtype, int heads, int reduce, float scale, Address out, int threads) {
  headrace::BlockScoreArgs args{};
  args.q = at<const void>(q);
  args.keys = at<const void>(keys);
  args.upper = at<const void>(upper);
  args.index = at<const std::int32_t>(index);
  args.lengths = at<const std::int32_t>(lengths);
  args.out = at<float>(out);
  std::copy(q_strides.begin(), q_strides.end(), args.q_strides);
  std::copy(key_strides.begin(), key_strides.end(), args.key_strides);
  std::copy(upper_strides.begin(), upper_strides.end(), args.upper_strides);
  args.index_stride = index_stride;
  args.lengths_stride = lengths_stride;
  args.q_heads = static_cast<int>(sizes[1]);
  args.kv_heads = static_cast<int>(sizes[2]);
  args.out_heads = static_cast<int>(sizes[3]);
  args.queries = sizes[4];
  args.rows = sizes[5];
  args.stored = sizes[6];
  args.dim = sizes[7];
  args.block_size = sizes[8];
  args.blocks = sizes[9];
  args.q_dtype = q_dtype;
  args.dtype = dtype;
  args.heads = heads;
  args.reduce = reduce;
  args.scale = scale;
  py::gil_scoped_release nogil;
  headrace::block_score(args, sizes[0], threads);
}

// Of plain floats, every row a block; `upper` may be None. False, with nothing done, for anything
// else.
bool block_score_plain(py::handle q, py::handle keys, py::handle upper, int heads, int reduce,
                       double scale, py::handle out, bool recorded, int threads) {
  Described asked, rows, most, scores;
  int q_dtype, dtype, other, kind;
  const bool bounds = !upper.is_none();
  if (!plain(q, 4, recorded, asked, q_dtype) || !plain(keys, 4, recorded, rows, dtype) ||
      !plain(out, 3, recorded, scores, kind) || q_dtype > headrace::kF16 ||
      dtype > headrace::kF16 || kind != headrace::kF32 || !dense(scores)) {
    return false;
  }
  if (bounds && (!plain(upper, 4, recorded, most, other) || other != dtype ||
                 !std::equal(most.shape, most.shape + 4, rows.shape))) {
    return false;
  }
  const std::int64_t *one = asked.shape, *stored = rows.shape;       // B Hq W D, Bk Hkv N D
  const std::int64_t made[] = {one[1], stored[1], stored[1], 1, 1};  // heads, by ScoreHeads
  if ((stored[0] != one[0] && stored[0] != 1) || one[1] % stored[1] != 0 || one[3] != stored[3] ||
      one[3] % 16 != 0 || heads < 0 || reduce < 0 || scores.shape[0] != one[0] ||
      scores.shape[1] != made[heads] || scores.shape[2] != stored[2]) {
    return false;
  }
  headrace::BlockScoreArgs args{};
  args.q = asked.data;
  args.keys = rows.data;
  args.upper = bounds ? most.data : nullptr;
  args.out = static_cast<float*>(scores.data);
  for (int i = 0; i < 3; ++i) {
    args.q_strides[i] = asked.strides[i];
    args.key_strides[i] = i == 0 && stored[0] == 1 ? 0 : rows.strides[i];
    if (bounds) args.upper_strides[i] = i == 0 && stored[0] == 1 ? 0 : most.strides[i];
  }
  args.q_heads = static_cast<int>(one[1]);
  args.kv_heads = static_cast<int>(stored[1]);
  args.out_heads = static_cast<int>(made[heads]);
  args.queries = one[2];
  args.rows = args.stored = args.blocks = stored[2];
  args.dim = one[3];
  args.block_size = 1;
  args.q_dtype = q_dtype;
  args.dtype = dtype;
  args.heads = heads;
  args.reduce = reduce;
  args.scale = static_cast<float>(scale);
  py::gil_scoped_release nogil;
  headrace::block_score(args, one[0], threads);
  return true;
}

// sizes: rows, heads, dim, segments. Of total, low, high, unit: address and strides.
void segment_reduce(Address x, Strides2 x_strides, Address ids, std::int64_t ids_stride,
                    std::array<std::int64_t, 4> sizes, int dtype, std::array<Address, 4> states,
                    std::array<Strides2, 4> strides, std::array<int, 2> bound_dtypes, Address count,
                    std::int64_t count_stride, int threads) {
  headrace::SegmentArgs args{};
  args.x = at<const void>(x);
  args.total = at<float>(states[0]);
  args.low = at<void>(states[1]);
  args.high = at<void>(states[2]);
  args.unit = at<float>(states[3]);
  std::int64_t* to[] = {args.total_strides, args.low_strides, args.high_strides, args.unit_strides};
  for (int i = 0; i < 4; ++i) std::copy(strides[i].begin(), strides[i].end(), to[i]);
  std::copy(x_strides.begin(), x_strides.end(), args.x_strides);
  args.dim = sizes[2];
  args.heads = static_cast<int>(sizes[1]);
  args.dtype = dtype;
  args.low_dtype = bound_dtypes[0];
  args.high_dtype = bound_dtypes[1];
  py::gil_scoped_release nogil;
  headrace::segment_reduce(args, at<const std::int32_t>(ids), ids_stride, sizes[0], sizes[3],
                           at<std::int32_t>(count), count_stride, threads);
}

namespace mass {
HEADRACE_IN(q, k, lse, past, lengths, causal, reduce, exclude, pool, pooling, decay, scale, out);

bool is(const Given& x, const char* text) { return std::strcmp(x.text, text) == 0; }

bool serves(const In& in, std::int64_t* told) {
  if (!sixteens(in.q.size(3), INT64_MAX) || in.q.size(1) == 0 ||
      !groups(in.q.size(1), in.k.size(1)) || in.q.size(2) == 0 ||
      !(is(in.reduce, "mean") || is(in.reduce, "sum") || is(in.reduce, "max")) ||
      !(is(in.pooling, "mean") || is(in.pooling, "max")) || in.exclude.whole < 0 ||
      in.pool.whole < 1 || in.pool.whole % 2 == 0 || !finite(in.decay) || !finite(in.scale)) {
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
  args.largest = is(in.reduce, "max");
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
  plan.mean = is(in.reduce, "mean");
  plan.pool_largest = is(in.pooling, "max");
  // A pool beyond that sees no more.
  plan.pool = plan.pool_largest ? std::min(in.pool.whole, 2 * args.keys + 1) : in.pool.whole;
  plan.decay = static_cast<float>(in.decay.number);
  plan.out = in.out.as<float>();
  headrace::attention_mass(args, plan, in.q.size(0), threads);
}
}  // namespace mass

// sizes: batch, rows, candidates, dim; ids: what a candidate's number is multiplied by, and added
void assign(Address x, Strides2 x_strides, Address c, Strides2 c_strides, Address lengths,
            std::int64_t lengths_stride, std::array<std::int64_t, 4> sizes, int dtype, int metric,
            float threshold, bool causal, std::array<int, 2> ids, Address id, Address similarity,
            int threads) {
  headrace::AssignArgs args{};
  args.x = at<const void>(x);
  args.c = at<const void>(c);
  args.lengths = at<const std::int32_t>(lengths);
  args.id = at<std::int32_t>(id);
  args.similarity = at<float>(similarity);
  std::copy(x_strides.begin(), x_strides.end(), args.x_strides);
  std::copy(c_strides.begin(), c_strides.end(), args.c_strides);
  args.lengths_stride = lengths_stride;
  args.rows = sizes[1];
  args.candidates = sizes[2];
  args.dim = sizes[3];
  args.dtype = dtype;
  args.metric = metric;
  args.threshold = threshold;
  args.causal = causal;
  args.id_step = ids[0];
  args.id_first = ids[1];
  py::gil_scoped_release nogil;
  headrace::assign(args, sizes[0], threads);
}

// Of plain tensors; states: total, low, high, unit, count, each may be None. False, with nothing
// done, for anything else.
bool segment_plain(py::handle x, py::handle ids, py::tuple states, bool recorded, int threads) {
  headrace::SegmentArgs args{};
  Described rows, segment, state;
  int dtype, kind;
  std::int64_t segments = -1, count_stride = 0;
  if (!plain(x, 3, recorded, rows, dtype) || dtype > headrace::kF16 ||
      !plain(ids, 1, recorded, segment, kind) || kind != kPlainI32 ||
      segment.shape[0] != rows.shape[0] || states.size() != 5) {
    return false;
  }
  void* found[5] = {};
  std::int64_t* strides[] = {args.total_strides, args.low_strides, args.high_strides,
                             args.unit_strides};
  int kinds[5] = {};
  for (int i = 0; i < 5; ++i) {
    const py::handle given = PyTuple_GET_ITEM(states.ptr(), i);
    if (given.is_none()) continue;
    if (!plain(given, i < 4 ? 3 : 1, recorded, state, kinds[i])) return false;
    if (segments >= 0 && state.shape[0] != segments) return false;
    for (int d = 0; d < state.dims; ++d) {  // memory of its own for all
      if (state.shape[d] > 1 && state.strides[d] == 0) return false;
    }
    segments = state.shape[0];
    found[i] = state.data;
    if (i == 4) {
      if (kinds[i] != kPlainI32) return false;
      count_stride = state.strides[0];
      continue;
    }
    const bool bound = i == 1 || i == 2;
    if (state.shape[1] != rows.shape[1] || state.shape[2] != rows.shape[2] ||
        (kinds[i] != headrace::kF32 && !(bound && kinds[i] == dtype))) {
      return false;
    }
    std::copy_n(state.strides, 2, strides[i]);
  }
  if (segments < 0) return false;
  args.x = rows.data;
  std::copy_n(rows.strides, 2, args.x_strides);
  args.total = static_cast<float*>(found[0]);
  args.low = found[1];
  args.high = found[2];
  args.unit = static_cast<float*>(found[3]);
  args.low_dtype = kinds[1];
  args.high_dtype = kinds[2];
  args.heads = static_cast<int>(rows.shape[1]);
  args.dim = rows.shape[2];
  args.dtype = dtype;
  py::gil_scoped_release nogil;
  headrace::segment_reduce(args, static_cast<const std::int32_t*>(segment.data), segment.strides[0],
                           rows.shape[0], segments, static_cast<std::int32_t*>(found[4]),
                           count_stride, threads);
  return true;
}

// Of plain tensors, x and c [N, D] or [B, N, D]; c may be None. False, with nothing done, for
// anything else.
bool assign_plain(py::handle x, py::handle c, int metric, py::handle threshold, bool causal,
                  bool bipartite, py::handle id, py::handle similarity, bool recorded,
                  int threads) {
  headrace::AssignArgs args{};
  Described rows, others, ids, likeness;
  int dtype, other, kind, float_kind, dims = 2;
  double least = -std::numeric_limits<double>::infinity();
  while (dims <= 3 && !plain(x, dims, recorded, rows, dtype)) ++dims;
  const bool bits = metric == headrace::kHamming;
  if (dims > 3 || metric < 0 || (bits ? dtype != kPlainI32 : dtype > headrace::kF16) ||
      (!threshold.is_none() && !number(threshold, least)) || !(least == least) ||
      !plain(id, dims - 1, recorded, ids, kind) || kind != kPlainI32 ||
      !plain(similarity, dims - 1, recorded, likeness, float_kind) ||
      float_kind != headrace::kF32 || !dense(ids) || !dense(likeness)) {
    return false;
  }
  const std::int64_t batch = dims == 3 ? rows.shape[0] : 1, all = rows.shape[dims - 2],
                     dim = rows.shape[dims - 1], step = bipartite ? 2 : 1;
  if (bits ? dim > 16 : dim % 16 != 0) return false;
  args.x = args.c = rows.data;
  args.dim = dim;
  args.rows = bipartite ? (all + 1) / 2 : all;
  args.candidates = bipartite ? all / 2 : all;
  args.x_strides[0] = dims == 3 ? rows.strides[0] : 0;
  args.x_strides[1] = step * rows.strides[dims - 2];
  std::copy_n(args.x_strides, 2, args.c_strides);
  if (batch == 1) args.c_strides[0] = 0;
  if (!c.is_none()) {
    int of = 2;
    while (of <= 3 && !plain(c, of, recorded, others, other)) ++of;
    if (of > 3 || bipartite || other != dtype || others.shape[of - 1] != dim ||
        (of == 3 && others.shape[0] != 1 && others.shape[0] != batch)) {
      return false;
    }
    args.c = others.data;
    args.candidates = others.shape[of - 2];
    args.c_strides[0] = of == 3 && others.shape[0] > 1 ? others.strides[0] : 0;
    args.c_strides[1] = others.strides[of - 2];
  } else if (causal == bipartite) {
    return false;
  } else if (bipartite) {  // rows 1, 3, 5... of x
    args.c = static_cast<const char*>(rows.data) + rows.strides[dims - 2] * kItems[dtype];
  }
  if (ids.shape[dims - 2] != args.rows || likeness.shape[dims - 2] != args.rows ||
      (dims == 3 && (ids.shape[0] != batch || likeness.shape[0] != batch))) {
    return false;
  }
  args.id = static_cast<std::int32_t*>(ids.data);
  args.similarity = static_cast<float*>(likeness.data);
  args.dtype = bits ? headrace::kScoreInt : dtype;
  args.metric = metric;
  args.threshold = static_cast<float>(least);
  args.causal = causal;
  args.id_step = static_cast<int>(step);
  args.id_first = bipartite ? 1 : 0;
  py::gil_scoped_release nogil;
  headrace::assign(args, batch, threads);
  return true;
}

}  // namespace

void score_family(py::module_& m) {
  m.def("block_score", &block_score);
  m.def("block_score_plain", &block_score_plain);
  m.def("segment_reduce", &segment_reduce);
  bind_op<&mass::serves, &mass::run>(m, "attention_mass");
  m.def("assign", &assign);
  m.def("segment_plain", &segment_plain);
  m.def("assign_plain", &assign_plain);
}

}  // namespace headrace::bind
