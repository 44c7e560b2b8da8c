// SPDX-License-Identifier: Apache-2.0
#include "pooled_block_mask.h"

#include <algorithm>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {

void pooled_block_mask(PooledBlockMaskArgs args, std::int64_t batch, int threads) {
  const auto& kernels = HEADRACE_PICK(pooled_block_mask);
  args.q_blocks = (args.q_len + args.block - 1) / args.block;
  args.k_blocks = (args.k_len + args.block - 1) / args.block;
  args.padded = (args.k_blocks + 15) / 16 * 16;
  const std::int64_t q_heads = batch * args.q_heads, kv_heads = batch * args.kv_heads;
  if (q_heads * args.q_blocks * args.k_blocks == 0) return;
  const auto words = [](std::int64_t n) { return std::vector<float>(static_cast<std::size_t>(n)); };
  std::vector<float> q_mean = words(q_heads * args.q_blocks * args.dim);
  std::vector<float> k_mean = words(kv_heads * args.k_blocks * args.dim);
  std::vector<float> columns = words(kv_heads * args.dim * args.padded);
  args.q_mean = q_mean.data();
  args.k_mean = k_mean.data();
  args.columns = columns.data();

  const std::int64_t q_count = q_heads * args.q_blocks, k_count = kv_heads * args.k_blocks;
  const double reading =
      0.25 * args.dim *
      (static_cast<double>(q_heads) * args.q_len + static_cast<double>(kv_heads) * args.k_len);
  const int readers = useful_threads(threads, reading);
  parallel(q_count + k_count, readers, [&](std::int64_t i, int) {
    const bool keys = i < k_count;
    const std::int64_t at = keys ? i : i - k_count;
    kernels.pool(args, keys, at, at + 1);
  });
  parallel(kv_heads, readers, [&](std::int64_t i, int) { kernels.centre(args, i); });

  const std::int64_t groups = (args.q_blocks + kMaskRows - 1) / kMaskRows;
  const double work = static_cast<double>(q_count) * args.k_blocks * (args.dim + 32);
  const int team = useful_threads(threads, work);
  const Scratch scratch((kMaskRows + 1) * args.padded, team);
  parallel(q_heads * groups, team, [&](std::int64_t i, int t) {
    const std::int64_t first = (groups - 1 - i % groups) * kMaskRows;
    const std::int64_t rows = std::min<std::int64_t>(kMaskRows, args.q_blocks - first);
    kernels.choose(args, i / groups, first, static_cast<int>(rows), scratch.of(t));
  });
}

}  // namespace headrace
