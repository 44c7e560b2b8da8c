// SPDX-License-Identifier: Apache-2.0
#include "score.h"

#include <algorithm>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace headrace {

namespace {

const ScoreKernels& score_kernels() {
  return pick(headrace_score_scalar, headrace_score_avx2, headrace_score_avx512);
}

bool counts_bits_of_vectors() {
#ifdef HEADRACE_X86
  return __builtin_cpu_supports("avx512vpopcntdq");
#else
  return false;
#endif
}

}  // namespace

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
  std::vector<float> folds(static_cast<std::size_t>(batch * a.kv_heads * a.folded * width));
  a.folds = folds.data();
  parallel(batch,
           useful_threads(threads, static_cast<double>(batch) * a.q_heads * a.queries * a.dim),
           [&](std::int64_t b, int) { kernels.fold(a, b); });

  // Tiles stay whole, so that no score depends on how the work is cut.
  const std::int64_t whole = a.rows * a.dim > (1 << 20) ? 8 * kScoreSpan : kScoreSpan;
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

}  // namespace headrace
