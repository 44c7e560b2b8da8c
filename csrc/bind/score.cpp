// SPDX-License-Identifier: Apache-2.0
#include "score.h"

#include <algorithm>

#include "bind/bind.h"

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

}  // namespace

void score_family(py::module_& m) { m.def("block_score", &block_score); }

}  // namespace headrace::bind
