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

// Sums of rows by segment; any of the results may be null. Strides: row or segment, head.
struct SegmentArgs {
  const void* x;        // [rows, heads, dim]
  float *total, *unit;  // [segments, heads, dim]
  void *low, *high;     // the same, fp32 or the dtype of x
  std::int64_t x_strides[2], total_strides[2], unit_strides[2], low_strides[2], high_strides[2];
  std::int64_t dim;
  int heads, dtype, low_dtype, high_dtype;
};

struct MassArgs {
  const void *q, *k;            // [batch, q_heads, queries, dim], [batch, kv_heads, keys, dim]
  const std::int32_t* lengths;  // [batch] or null, from 0 to keys
  float* folds;                 // the queries in fp32, times scale and log2(e)
  float* norms;                 // [batch, q_heads, queries]: log2 of the sums of the softmax
  float* mass;                  // [batch, kv_heads, keys]
  // Logits of kv heads from first_head on, head_logits of each, or null; summing: they are written.
  float* logits;
  std::int64_t first_head, head_logits;
  bool summing;
  std::int64_t q_strides[3], k_strides[3], lengths_stride;  // batch, head, row
  std::int64_t queries, keys, dim;
  int q_heads, kv_heads, dtype;
  bool causal, largest;
  float scale;
};

enum AssignMetric : int { kCosine, kDot, kSquares, kHamming };
constexpr int kAssignRows = 24;

struct AssignArgs {
  const void *x, *c;            // [batch, rows, dim], [batch or 1, candidates, dim]
  const std::int32_t* lengths;  // [batch] or null
  float* columns;               // [batch or 1, tiles, assign_tile words]; null: none are kept
  std::int32_t* id;             // [batch, rows]: number of the candidate * id_step + id_first
  float* similarity;            // [batch, rows]
  std::int64_t x_strides[2], c_strides[2], lengths_stride, rows, candidates, tiles, dim;
  int metric, dtype, id_step, id_first;
  float threshold;
  bool causal, popcount;
};

struct ScoreKernels {
  // Queries of a batch entry as fp32, summed as far as that is exact.
  void (*fold)(const BlockScoreArgs&, std::int64_t batch);
  // Scores of blocks [begin, end). scratch: block_scratch words.
  void (*blocks)(const BlockScoreArgs&, std::int64_t batch, std::int64_t begin, std::int64_t end,
                 float* scratch);
  // Adds n rows of heads [first, last) to a segment.
  void (*segment)(const SegmentArgs&, std::int64_t segment, int first, int last,
                  const std::int32_t* rows, std::int64_t n);
  // The queries of a batch entry; then of one kv head and keys [begin, end) largest logit and sum
  // of every row, in powers of 2; then what the keys get. scratch: mass_scratch words.
  void (*mass_queries)(const MassArgs&, std::int64_t batch);
  void (*mass_sums)(const MassArgs&, std::int64_t batch, int kv, std::int64_t begin,
                    std::int64_t end, float* top, float* sum, float* scratch);
  void (*mass)(const MassArgs&, std::int64_t batch, int kv, std::int64_t begin, std::int64_t end,
               float* scratch);
  // Columns of a tile of candidates; then rows [begin, end), kAssignRows at most. scratch:
  // assign_scratch words.
  void (*candidates)(const AssignArgs&, std::int64_t batch, std::int64_t tile);
  void (*assign)(const AssignArgs&, std::int64_t batch, std::int64_t begin, std::int64_t end,
                 float* scratch);
};

inline std::int64_t mass_scratch(std::int64_t dim) { return kScoreTile * (dim + 24); }

// Words of a tile of candidates: its columns, and a number of each.
inline std::int64_t assign_tile(std::int64_t dim) { return (dim + 1) * kScoreTile; }
// Rows and their similarities; a tile, where columns are not kept.
inline std::int64_t assign_scratch(std::int64_t dim, bool tile) {
  return kAssignRows * (dim + kScoreTile) + (tile ? assign_tile(dim) : 0);
}
// A row or two meet candidates where these lie.
inline bool assign_in_place(const AssignArgs& a) { return a.metric == kSquares && a.rows <= 2; }

// Words of the record of one row of queries of sign bits.
inline std::int64_t bit_record(const BlockScoreArgs& a) { return 1 + a.dim * (1 + a.planes); }

// Blocks of tokens that a tile takes whole.
inline std::int64_t blocks_of_tile(const BlockScoreArgs& a) {
  return a.block_size < kScoreTile ? kScoreTile / a.block_size : 1;
}

// The scores of a span; columns of a tile, and products with it.
inline std::int64_t block_scratch(const BlockScoreArgs& a) {
  const std::int64_t most = a.block_size > 1 ? blocks_of_tile(a) * a.folded : 0;
  return kScoreTile * (a.dim + a.group + 24) + kScoreSpan * a.out_heads + most + 64;
}

}  // namespace headrace

HEADRACE_TABLES(ScoreKernels, score)
