// SPDX-License-Identifier: Apache-2.0
#include "pooled_block_mask.h"

#include <algorithm>

#include "bind/bind.h"

namespace headrace::bind {

namespace {

void pooled_block_mask(Address q, Strides3 q_strides, Address k, Strides3 k_strides,
                       std::array<std::int64_t, 6> sizes, int dtype, double share,
                       std::int64_t blocks, std::int64_t block_size, std::int64_t window,
                       std::int64_t sinks, std::int64_t local, bool causal, Address mask,
                       int threads) {
  const auto [batch, q_heads, kv_heads, q_len, k_len, dim] = sizes;
  headrace::PooledBlockMaskArgs args{};
  args.q = at<const void>(q);
  args.k = at<const void>(k);
  args.mask = at<bool>(mask);
  std::copy(q_strides.begin(), q_strides.end(), args.q_strides);
  std::copy(k_strides.begin(), k_strides.end(), args.k_strides);
  args.q_len = q_len;
  args.k_len = k_len;
  args.block = block_size;
  args.window = window;
  args.sinks = sinks;
  args.local = local;
  args.blocks = blocks;
  args.share = share;
  args.q_heads = static_cast<int>(q_heads);
  args.kv_heads = static_cast<int>(kv_heads);
  args.dim = static_cast<int>(dim);
  args.dtype = dtype;
  args.causal = causal;
  py::gil_scoped_release nogil;
  headrace::pooled_block_mask(args, batch, threads);
}

}  // namespace

void pooled_block_mask_family(py::module_& m) { m.def("pooled_block_mask", &pooled_block_mask); }

}  // namespace headrace::bind
