// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

constexpr int kHstuRows = 96;  // query rows of a block

// What decides who sees whom in one sequence; all in logical indices (orders) of its tokens.
struct HstuRule {
  std::int64_t length;   // tokens of the sequence, evicted ones counted
  std::int64_t history;  // those before the targets
  std::int64_t context;  // those of the contextual prefix
  std::int64_t reach;    // max_attn_len, 0: unlimited
  std::int64_t full;     // last tokens of the history that reach does not bind
  std::int64_t sinks;    // first tokens that reach never hides
  bool causal;
};

// What a row sees: [0, sinks), [lo, hi), and itself when it lies outside.
struct HstuSeen {
  std::int64_t sinks, lo, hi, self;  // self: its own order, or -1 when [lo, hi) has it
};

// Cached keys of consecutive orders at consecutive rows.
struct HstuRun {
  std::int64_t row, order, count;
};

struct HstuArgs {
  const void *q, *k, *v;    // [Lq, H, D], [Lk, H, D], [Lk, H, Dv]
  void* o;                  // [Lq, H, Dv] contiguous
  const float* attn_scale;  // [Lq] or null
  std::int64_t q_row, q_head, k_row, k_head, v_row, v_head;
  std::int64_t split;  // orders are cut at its multiples, and sums added up cut by cut
  int heads, dim, v_dim, dtype;
  float alpha, weight;  // weight: what attn_scale is when null
};

// A block of rows of one sequence and head, over cuts [first, last) of those that hold keys.
struct HstuItem {
  std::int64_t row, order;  // first row in q, and its order
  const HstuRule* rule;
  const HstuRun* runs;       // by rising order
  const std::int64_t* cuts;  // those that hold keys: orders from cut * split on
  std::int64_t run_count, first, last;
  int head, rows;
  float* partial;  // [cuts][rows][Dv] of the block, or null: then the item is the whole block
};

// Words of scratch for a thread: sums and total, queries, logits, keys, values.
inline std::int64_t hstu_scratch(int dim, int v_dim, int tile) {
  return static_cast<std::int64_t>(kHstuRows) * (2 * v_dim + dim + tile) + (dim + v_dim) * tile +
         64;
}

struct HstuKernels {
  void (*run)(const HstuArgs&, const HstuItem&, float* scratch);
  // Adds the cuts of a block in order and writes its rows.
  void (*merge)(const HstuArgs&, const HstuItem&);
};

}  // namespace headrace

HEADRACE_TABLES(HstuKernels, hstu)
