// SPDX-License-Identifier: Apache-2.0
// What the host hands to the attention bodies. Plain data: pointers, sizes and strides in elements.
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

// Columns of an entry of a view (int64 each); those of axes 1 and 2 only where there are three.
enum EntryField : int { kPage, kFirst, kCount, kOrigin, kCap, kOrder, kReach, kOrigin1 };

// Scales [N, Hp, S] of quantised pages; `at` is null for pages of floats. slot is 1, or 0 where a
// page has one scale for all slots (S = 1).
struct Scales {
  float* at;
  std::int64_t page, head;
  int slot;
};

// How positions turn frequencies: by the distance along one axis, or along that of freq_axis.
struct Rope {
  const double* inv_freq;         // [half] or null
  const std::int32_t* freq_axis;  // [half] or null when axes == 1
  int half, axes;
  float gain;  // multiplies what is turned
};

struct Softmax {
  float scale;
  float softcap;             // 0: off
  const float* sink_logits;  // [Hq] or null
};

// The part of a query block's visible tokens that one work item owns. Tokens are counted along the
// view, over those that any row of the block may see.
struct Share {
  std::int64_t begin, end;
  int split, splits;
  float* partial;  // [splits][rows][D + 2], null when splits == 1
};

struct PagedArgs {
  const void* q;                                               // [T, Hq, D]
  const void* k;                                               // [N, Hkv, D, P]
  const void* v;                                               // [N, Hkv, P, D]
  void* o;                                                     // [T, Hq, D] contiguous
  float* lse;                                                  // [T, Hq] contiguous
  const std::int64_t* entries;                                 // [E, fields]
  const std::int64_t* q_pos;                                   // [T, axes]
  const std::int64_t* q_order;                                 // [T]
  std::int64_t q_row, q_head, k_page, k_head, v_page, v_head;  // heads: 0 where a page holds one
  int q_heads, kv_heads, dim, page_size, fields, q_dtype, kv_dtype;
  Rope rope;
  Scales k_scale, v_scale;
  Softmax softmax;
};

// Where the state of one position's rows of the first head goes, [group][D + 2], and how many words
// on those of the next head.
struct State {
  float* at;
  std::int64_t head;
};

// One block of query rows of one stream, and some of its kv heads.
struct PagedItem {
  std::int64_t row;      // first row in q
  std::int64_t entry;    // first entry of the list
  std::int64_t entries;  // how many
  int positions;         // query positions in the block
  int kv_head, heads;    // first kv head, how many
  Share share;           // partial: [heads][splits][rows][D + 2]
  // Of an item for several streams: rows of q, and where the state of each position goes. Of an
  // item that goes on where such a one stopped: the states of its rows, [heads][rows][D + 2].
  const std::int64_t* tokens;
  const State* keep;
  const float* resume;
};

struct DenseArgs {
  const void *q, *k, *v;  // [B, Hq, Lq, D], [B, Hkv, Lk, D] twice
  void* o;                // [B, Hq, Lq, D] contiguous
  float* lse;             // [B, Hq, Lq]
  std::int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row;
  std::int64_t q_len, k_len, window, sinks;
  int q_heads, kv_heads, dim, dtype;
  bool causal;
  Softmax softmax;
  // [B|1, Hq|1, ceil(Lq / block), ceil(Lk / block)] of bool, or null; strides in elements, 0 along
  // an axis of 1. It cuts the window; sinks are seen whatever it says.
  const std::uint8_t* block_mask;
  std::int64_t mask_batch, mask_head, mask_row, mask_col, block;
  std::int64_t cached;  // packed tiles of keys that a thread keeps, 1 or more
};

// Query positions of `heads` query heads of one kv head: all of them, or one where each has its own
// block mask. Where there is a mask, all positions lie in one block of it.
struct DenseItem {
  std::int64_t position;  // first query position of the block
  int batch, head, heads, positions;
  Share share;
};

struct AppendArgs {
  const void *k, *v;          // [T, Hkv, D]
  void *k_pages, *v_pages;    // [N, Hkv, D, P], [N, Hkv, P, D]
  const std::int64_t* where;  // [T, 2 + axes]: page, slot, offset along each axis
  std::int64_t k_row, k_head, v_row, v_head, k_page, k_page_head, v_page, v_page_head;
  int kv_heads, dim, page_size, dtype, page_dtype;
  Rope rope;
  Scales k_scale, v_scale;
};

struct MergeArgs {
  const void *o_a, *o_b;       // [rows, D] contiguous
  const float *lse_a, *lse_b;  // [rows]
  void* o;
  float* lse;
  int dim, dtype;
};

// Tokens that fit one register-blocked pass, and the rows that one block holds at most when the
// group of query heads is small.
constexpr int kTile = 64;
constexpr int kMostDim = 256;
constexpr int kBlockRows = 64;
// Tokens that one call of append writes at most, and slots of a page that one thread writes: whole
// lines of its columns.
constexpr int kRun = 16;
constexpr int kOwned = 64;

inline int block_positions(int group) {
  return group < 1 || group >= kBlockRows ? 1 : kBlockRows / group;
}

// fp32 words of scratch that one item needs.
inline std::int64_t attention_scratch(int positions, int rows, int dim, int half) {
  return static_cast<std::int64_t>(rows) * (3 * dim + kTile + 4) + 2 * positions + 2 * half +
         dim * kTile + 64;
}

// fp32 words at the start of an item's scratch that stay from item to item of a dense call: whose
// every packed tile is (int64, -1 at first), and the tiles, of keys and of values.
inline std::int64_t owner_words(std::int64_t tiles) { return 2 * ((tiles + 7) / 8 * 8); }
inline std::int64_t cache_words(const DenseArgs& a) {
  return owner_words(a.cached) + 2 * a.cached * kTile * a.dim;
}

struct AttentionKernels {
  void (*paged)(const PagedArgs&, const PagedItem&, float* scratch);
  void (*paged_merge)(const PagedArgs&, const PagedItem&);
  void (*dense)(const DenseArgs&, const DenseItem&, float* scratch);
  void (*dense_merge)(const DenseArgs&, const DenseItem&);
  // Tokens [begin, end) lie in consecutive slots of one page; at most kRun of them.
  void (*append)(const AppendArgs&, std::int64_t begin, std::int64_t end, float* scratch);
  void (*merge)(const MergeArgs&, std::int64_t begin, std::int64_t end);
};

}  // namespace headrace

HEADRACE_TABLES(AttentionKernels, attention)
