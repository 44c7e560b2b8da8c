// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

constexpr int kScoreTile = 64;   // rows that are scored together
constexpr int kScoreSpan = 512;  // and one after the other, of a head
constexpr int kScoreInt = 5;     // dtype code of 32-bit words of sign bits

// What becomes of the query heads, and of the queries.
enum ScoreHeads : int { kEachHead, kGroupSum, kGroupMax, kHeadSum, kHeadMax };
enum ScoreQueries : int { kQueryMean, kQuerySum, kQueryMax };

struct BlockScoreArgs {
  const void *q, *keys, *upper;  // upper: null unless keys are lower bounds
  const std::int32_t* index;     // [batch, rows] or null
  const std::int32_t* lengths;   // [batch] or null
  float* out;                    // [batch, out_heads, blocks]
  std::int64_t q_strides[3], key_strides[3], upper_strides[3];  // batch, head, row; in elements
  std::int64_t index_stride, lengths_stride;
  std::int64_t queries, rows, stored, dim, block_size, blocks;
  int q_heads, kv_heads, out_heads, q_dtype, dtype, heads, reduce;
  float scale;
  // Of every kv head `folded` rows of queries, in order of head and query: [batch, kv_heads,
  // folded, dim] in fp32, once more of the negative parts for bounds.
  float* folds;
  // Of sign bits every row is bit_record words: the sum of the sizes of the weights, then for every
  // word the signs and `planes` binary digits of the sizes, which count in units of bit_unit.
  int planes, bit_unit;
  int folded, group;  // rows; heads that they still tell apart
  bool popcount;      // the processor counts the bits of a vector
};

struct ScoreKernels {
  // Queries of a batch entry as fp32, summed as far as that is exact.
  void (*fold)(const BlockScoreArgs&, std::int64_t batch);
  // Scores of blocks [begin, end). scratch: block_scratch words.
  void (*blocks)(const BlockScoreArgs&, std::int64_t batch, std::int64_t begin, std::int64_t end,
                 float* scratch);
};

// Words of the record of one row of queries of sign bits.
inline std::int64_t bit_record(const BlockScoreArgs& a) { return 1 + a.dim * (1 + a.planes); }

// The scores of a span; columns of a tile, and products with it.
inline std::int64_t block_scratch(const BlockScoreArgs& a) {
  return kScoreTile * (a.dim + a.group + 24) + kScoreSpan * a.out_heads + a.folded + 64;
}

}  // namespace headrace

extern "C" {
extern const headrace::ScoreKernels headrace_score_scalar;
extern const headrace::ScoreKernels headrace_score_avx2;
extern const headrace::ScoreKernels headrace_score_avx512;
}
