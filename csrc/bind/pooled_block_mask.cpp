// SPDX-License-Identifier: Apache-2.0
#include "pooled_block_mask.h"

#include <algorithm>

#include "bind/call.h"

namespace headrace::bind {

namespace {

HEADRACE_IN(q, k, share, blocks, block_size, window, sinks, local, causal, mask);

bool serves(const In& in, std::int64_t* told) {
  const std::int64_t block = in.block_size.whole;
  if (!sixteens(in.q.size(3), 256) || !groups(in.q.size(1), in.k.size(1)) ||
      !(in.share.number >= 0 && in.share.number <= 1) || (in.blocks.there && in.blocks.whole < 0) ||
      block < 1 || (in.window.there && in.window.whole < 1) || in.sinks.whole < 0 ||
      in.local.whole < 0) {
    return false;
  }
  told[0] = blocks_of(in.q.size(2), block);
  told[1] = blocks_of(in.k.size(2), block);
  return true;
}

void run(const In& in, int threads) {
  headrace::PooledBlockMaskArgs args{};
  args.q = in.q;
  args.k = in.k;
  args.mask = in.mask.as<bool>();
  std::copy(in.q.at.strides, in.q.at.strides + 3, args.q_strides);
  std::copy(in.k.at.strides, in.k.at.strides + 3, args.k_strides);
  args.q_len = in.q.size(2);
  args.k_len = in.k.size(2);
  const std::int64_t unlimited = std::max<std::int64_t>(1, args.q_len + args.k_len);
  args.block = std::min(in.block_size.whole, unlimited);
  args.window = in.window.there ? std::min(in.window.whole, unlimited) : unlimited;
  args.sinks = in.sinks.whole;
  args.local = std::min(in.local.whole, unlimited);
  args.blocks = in.blocks.there ? in.blocks.whole : -1;
  args.share = in.share.number;
  args.q_heads = static_cast<int>(in.q.size(1));
  args.kv_heads = static_cast<int>(in.k.size(1));
  args.dim = static_cast<int>(in.q.size(3));
  args.dtype = in.q.dtype;
  args.causal = in.causal.whole;
  headrace::pooled_block_mask(args, in.q.size(0), threads);
}

}  // namespace

void pooled_block_mask_family() { bind_op<&serves, &run>("pooled_block_mask"); }

}  // namespace headrace::bind
