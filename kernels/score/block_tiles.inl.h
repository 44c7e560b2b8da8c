// SPDX-License-Identifier: Apache-2.0
// Tiles of stored rows that are scored together: of floats, of sign bits.
#pragma once
#include "bits.inl.h"
#include "fold.inl.h"

namespace {

constexpr int kChunk = 24;  // rows of queries that are scored together

// Rows of a batch entry that count.
inline std::int64_t rows_there(const BlockScoreArgs& a, std::int64_t batch) {
  const std::int64_t length = a.lengths ? a.lengths[batch * a.lengths_stride] : a.rows;
  return length < 0 ? 0 : length < a.rows ? length : a.rows;
}

// The stored rows of a tile: their numbers, -1 for what is not there. Gives how many are.
inline int tile_rows(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin, int n,
                     std::int64_t* at) {
  const std::int64_t length = rows_there(a, batch);
  int there = 0;
  for (int j = 0; j < n; ++j) {
    const std::int64_t i = begin + j;
    std::int64_t row = i < length ? i : -1;
    if (row >= 0 && a.index) {
      row = a.index[batch * a.index_stride + i];
      if (row < 0 || row >= a.stored) row = -1;
    }
    at[j] = row;
    there += row >= 0;
  }
  return there;
}

// A tile of up to kScoreTile stored rows of floats.
template <class T>
struct FloatTile {
  const BlockScoreArgs& a;
  int n, coming;
  const T *rows[2 * kScoreTile], *low[2 * kScoreTile];  // the last ones are those to come

  FloatTile(const BlockScoreArgs& args, int count, int after)
      : a(args), n(count), coming(after < kScoreTile ? after : kScoreTile) {}

  // at: numbers of the rows. Those that are not there read one that is; their scores are dropped.
  void point(std::int64_t batch, int kv, const std::int64_t* at) {
    std::int64_t any = 0;
    for (int j = 0; j < n; ++j) any = at[j] >= 0 ? at[j] : any;
    const T* keys =
        static_cast<const T*>(a.keys) + batch * a.key_strides[0] + kv * a.key_strides[1];
    const T* upper = static_cast<const T*>(a.upper) +
                     (a.upper ? batch * a.upper_strides[0] + kv * a.upper_strides[1] : 0);
    for (int j = 0; j < 2 * kScoreTile; ++j) {
      const std::int64_t row = j < n + coming && at[j] >= 0 ? at[j] : any;
      rows[j] = a.upper ? upper + row * a.upper_strides[2] : keys + row * a.key_strides[2];
      low[j] = keys + row * a.key_strides[2];
    }
  }

  // body(row of queries, its scores s[n]) for all rows of queries of a kv head.
  template <class Body>
  void score(std::int64_t batch, int kv, float* scratch, const Body& body) const {
    const std::int64_t size = a.dim * a.folded;
    const float* q = a.folds + (batch * a.kv_heads + kv) * size * (a.upper ? 2 : 1);
    const float* q_low = q + size;
    float *s = scratch, *columns = scratch + kChunk * kScoreTile;
    if (a.folded <= kFew && !a.upper) {
      dots_tile(q, a.folded, rows, n, a.dim, true, s);
      for (int r = 0; r < a.folded; ++r) body(r, s + r * kScoreTile);
      return;
    }
    if (a.folded <= kFew) {
      for (int r = 0; r < a.folded; ++r) {
        for (int j = 0; j < n; j += kW) {
          store(s + j, dots(q + r * a.dim, rows + j, a.dim, q_low + r * a.dim,
                            a.upper ? low + j : nullptr, r == 0));
        }
        body(r, s);
      }
      return;
    }
    const std::int64_t words = score_in_pairs(a) ? a.dim / 2 : a.dim;
    Coming next(rows + n, coming, a.dim, a.folded, words);
    for (int r0 = 0; r0 < a.folded; r0 += kChunk) {
      const int count = a.folded - r0 < kChunk ? a.folded - r0 : kChunk;
      if (score_in_pairs(a)) {
        if (r0 == 0) to_pairs(rows, n, a.dim, columns);
        products<Doubles>(q + r0 * words, words, count, columns, n, words, false, s, &next);
        for (int r = 0; r < count; ++r) body(r0 + r, s + r * kScoreTile);
        continue;
      }
      if (r0 == 0 || a.upper) to_columns(rows, n, a.dim, columns);
      products(q + r0 * a.dim, a.dim, count, columns, n, a.dim, false, s, &next);
      if (a.upper) {
        to_columns(low, n, a.dim, columns);
        products(q_low + r0 * a.dim, a.dim, count, columns, n, a.dim, true, s);
      }
      for (int r = 0; r < count; ++r) body(r0 + r, s + r * kScoreTile);
    }
  }
};

// Whether the words of rows are one array.
inline bool side_by_side(const BlockScoreArgs& a) {
  return a.dim == 1 && a.key_strides[2] == 1 && !a.index;
}

inline float bit_score(const BlockScoreArgs& a, std::int64_t most, std::int32_t apart) {
  return static_cast<float>((static_cast<std::int32_t>(most) - 2 * apart) * a.bit_unit);
}

// A tile of stored rows of sign bits, `dim` words each. A score counts the bits that agree less
// those that do not, over all rows of queries that are summed.
struct BitTile {
  const BlockScoreArgs& a;
  int n;
  const std::uint32_t* dense;  // where one word each lies side by side
  std::uint32_t words[kBitWords][kScoreTile];

  BitTile(const BlockScoreArgs& args, int count, int) : a(args), n(count) {}

  void point(std::int64_t batch, int kv, const std::int64_t* at) {
    const std::uint32_t* keys = static_cast<const std::uint32_t*>(a.keys) +
                                batch * a.key_strides[0] + kv * a.key_strides[1];
    dense = nullptr;
    if (n == kScoreTile && side_by_side(a) && at[n - 1] >= 0) {
      dense = keys + at[0];
      return;
    }
    for (int j = 0; j < kScoreTile; ++j) {
      const bool there = j < n && at[j] >= 0;
      for (int d = 0; d < a.dim; ++d) words[d][j] = there ? keys[at[j] * a.key_strides[2] + d] : 0;
    }
  }

  // The record of a row of queries; its first word is the largest score.
  const std::uint32_t* record(std::int64_t batch, int kv, int r) const {
    return reinterpret_cast<const std::uint32_t*>(a.folds) +
           ((batch * a.kv_heads + kv) * a.folded + r) * headrace::bit_record(a);
  }

  // Adds for every stored row the weights at which it differs.
  void count(const std::uint32_t* record, std::int32_t* apart) const {
    const BitRows rows = {
        dense ? dense : words[0], record + 1, kScoreTile, 1 + a.planes, a.dim, a.planes, false};
    bits_apart(a.popcount, rows, apart);
  }

  template <class Body>
  void score(std::int64_t batch, int kv, float* s, const Body& body) const {
    for (int r = 0; r < a.folded; ++r) {
      alignas(64) std::int32_t apart[kScoreTile] = {};
      const std::uint32_t* fold = record(batch, kv, r);
      count(fold, apart);
      for (int j = 0; j < kScoreTile; ++j) s[j] = bit_score(a, fold[0], apart[j]);
      body(r, s);
    }
  }
};

}  // namespace
