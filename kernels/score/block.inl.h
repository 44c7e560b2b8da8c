// SPDX-License-Identifier: Apache-2.0
// Scores of blocks by what stands for them: means (or single keys), lower and upper bounds, or
// bits.
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

// Adds the scores s[n] of one row of queries (head a of its group) to those of the result.
inline void combine(const BlockScoreArgs& a, int kv, int head, const float* s, int n, float* out) {
  const bool each = a.heads == headrace::kEachHead;
  const bool grouped = a.heads == headrace::kGroupSum || a.heads == headrace::kGroupMax;
  const bool most = a.heads == headrace::kGroupMax || a.heads == headrace::kHeadMax;
  const int row = each ? kv * a.group + head : grouped ? kv : 0;
  const bool fresh = (each || (head == 0 && (grouped || kv == 0)));
  float* to = out + row * headrace::kScoreSpan;
  for (int j = 0; j < n; j += kW) {
    const F x = load(s + j);
    const F old = load(to + j);
    store(to + j, fresh ? x : most ? max(x, old) : add(x, old));
  }
}

// m[n] = s[n], or reduced with what is there.
inline void reduce_queries(int how, bool first, const float* s, int n, float* m) {
  for (int j = 0; j < n; j += kW) {
    const F x = load(s + j), old = load(m + j);
    store(m + j, first ? x : how == headrace::kQueryMax ? max(x, old) : add(x, old));
  }
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

inline void finish(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin, int n,
                   const std::int64_t* at, const float* sums) {
  const bool folded = a.dtype != headrace::kScoreInt && a.folded == a.group;
  const float part = !folded && a.reduce == headrace::kQueryMean ? 1.f / a.queries : 1.f;
  const float factor = part * a.scale;
  for (int o = 0; o < a.out_heads; ++o) {
    float* out = a.out + (batch * a.out_heads + o) * a.blocks + begin;
    const float* sum = sums + o * headrace::kScoreSpan;
    for (int j = 0; j < n; ++j) {
      const float x = sum[j] * factor;
      out[j] = at[j] >= 0 ? x : -kInf;
    }
  }
}

// Every stored row is a block.
template <class Tile>
inline void rows_as(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin,
                    std::int64_t end, float* scratch) {
  const std::int64_t per_head = a.folded / a.group;
  float *sums = scratch, *m = sums + a.out_heads * headrace::kScoreSpan;
  float* rest = m + a.group * kScoreTile;
  const int span = static_cast<int>(end - begin);
  std::int64_t at[headrace::kScoreSpan];
  if (tile_rows(a, batch, begin, span, at) > 0) {
    for (int kv = 0; kv < a.kv_heads; ++kv) {
      for (int t = 0; t < span; t += kScoreTile) {
        const int n = span - t < kScoreTile ? span - t : kScoreTile;
        Tile tile(a, n, span - t - n);
        tile.point(batch, kv, at + t);
        int head = 0;
        std::int64_t w = 0;  // rows come in order: none is divided by how many a head has
        tile.score(batch, kv, rest, [&](int, const float* s) {
          if (per_head == 1) return combine(a, kv, head++, s, n, sums + t);
          reduce_queries(a.reduce, w == 0, s, n, m);
          if (++w < per_head) return;
          w = 0;
          combine(a, kv, head++, m, n, sums + t);
        });
      }
    }
  }
  finish(a, batch, begin, span, at, sums);
}

// Whether nothing but sums follows the products of sign bits.
inline bool bits_summed(const BlockScoreArgs& a) {
  return a.dtype == headrace::kScoreInt && a.heads == headrace::kHeadSum && a.folded == 1 &&
         a.block_size == 1;
}

// Then they are counted over all heads before they become scores.
inline void bits_run(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin,
                     std::int64_t end, float* sums) {
  const std::int64_t length = rows_there(a, batch), record = headrace::bit_record(a);
  const std::uint32_t* keys = static_cast<const std::uint32_t*>(a.keys) + batch * a.key_strides[0];
  BitTile tile(a, kScoreTile, 0);
  const std::uint32_t* folds = tile.record(batch, 0, 0);
  std::int64_t most = 0;
  for (int kv = 0; kv < a.kv_heads; ++kv) most += folds[kv * record];
  const bool dense = side_by_side(a);
  for (std::int64_t t = begin; t < end; t += kScoreTile) {
    alignas(64) std::int32_t apart[kScoreTile] = {};
    std::int64_t at[kScoreTile];
    const int n = static_cast<int>(end - t < kScoreTile ? end - t : kScoreTile);
    if (dense && t + kScoreTile <= length && n == kScoreTile) {
      const bool more = t + kScoreTile + kBitsAhead <= length;
      const BitRows rows = {keys + t, folds + 1, a.key_strides[1], record, a.kv_heads,
                            a.planes, more};
      bits_apart(a.popcount, rows, apart);
      for (int j = 0; j < kScoreTile; ++j) at[j] = t + j;
    } else {
      tile.n = n;
      if (tile_rows(a, batch, t, n, at) > 0) {
        for (int kv = 0; kv < a.kv_heads; ++kv) {
          tile.point(batch, kv, at);
          tile.count(folds + kv * record, apart);
        }
      }
    }
    for (int j = 0; j < kScoreTile; ++j) sums[j] = bit_score(a, most, apart[j]);
    finish(a, batch, t, n, at, sums);
  }
}

// The largest of s[first, last) of the rows that are there, if that is more; NaN is none.
inline float most_of(float best, const float* s, int first, int last, const std::int64_t* at) {
  F most = set1(best);
  for (int j = first; j < last; j += kW) {
    F x = load(s + j);
    if (at) {
      float one[kW];
      for (int i = 0; i < kW; ++i) one[i] = j + i < last && at[j + i] >= 0 ? s[j + i] : -kInf;
      x = load(one);
    }
    most = max(keep(x, set1(-kInf), 0, last - j), most);
  }
  return hmax(most);
}

// A block is block_size rows: of every row of queries the largest product counts. Short blocks
// share a tile.
template <class Tile>
inline void max_as(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin,
                   std::int64_t end, float* scratch) {
  const std::int64_t per_head = a.folded / a.group, shared = headrace::blocks_of_tile(a);
  float *sums = scratch, *most = sums + a.out_heads * headrace::kScoreSpan;
  float* rest = most + (shared * a.folded + 15) / 16 * 16;
  for (std::int64_t b = begin; b < end; b += shared) {
    const int count = static_cast<int>(end - b < shared ? end - b : shared);
    const std::int64_t first = b * a.block_size, upto = (b + count) * a.block_size;
    const std::int64_t last = upto < a.rows ? upto : a.rows;
    std::int64_t here[kScoreTile];  // 0 of a block with rows
    for (int k = 0; k < count; ++k) here[k] = -1;
    for (int kv = 0; kv < a.kv_heads; ++kv) {
      for (std::int64_t i = 0; i < count * a.folded; ++i) most[i] = -kInf;
      for (std::int64_t t = first; t < last; t += kScoreTile) {
        std::int64_t at[kScoreTile];
        const int n = static_cast<int>(last - t < kScoreTile ? last - t : kScoreTile);
        const int some = tile_rows(a, batch, t, n, at);
        if (some == 0) continue;
        const int size = static_cast<int>(count > 1 ? a.block_size : n);
        for (int k = 0, j = 0; j < n; ++k, j += size) {
          for (int i = j; i < n && i < j + size && here[k] < 0; ++i) here[k] = at[i] < 0 ? -1 : 0;
        }
        Tile tile(a, n, 0);
        tile.point(batch, kv, at);
        tile.score(batch, kv, rest, [&](int r, const float* s) {
          for (int k = 0, j = 0; j < n; ++k, j += size) {
            float& best = most[k * a.folded + r];
            best = most_of(best, s, j, j + size < n ? j + size : n, some < n ? at : nullptr);
          }
        });
      }
      for (int head = 0; head < a.group; ++head) {
        float m[kScoreTile];
        for (int k = 0; k < count; ++k) {
          const float* own = most + k * a.folded + head * per_head;
          m[k] = own[0];
          for (std::int64_t w = 1; w < per_head; ++w) {
            m[k] = a.reduce != headrace::kQueryMax ? m[k] + own[w] : own[w] > m[k] ? own[w] : m[k];
          }
        }
        combine(a, kv, head, m, count, sums);
      }
    }
    finish(a, batch, b, count, here, sums);
  }
}

template <class Tile>
inline void blocks_as(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin,
                      std::int64_t end, float* scratch) {
  if (a.block_size == 1) return rows_as<Tile>(a, batch, begin, end, scratch);
  max_as<Tile>(a, batch, begin, end, scratch);
}

void one_span(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin, std::int64_t end,
              float* scratch) {
  if (a.dtype == headrace::kScoreInt) {
    return blocks_as<BitTile>(a, batch, begin, end, scratch);
  }
  if (a.dtype == headrace::kF32) return blocks_as<FloatTile<float>>(a, batch, begin, end, scratch);
  if (a.dtype == headrace::kBF16) return blocks_as<FloatTile<bf16>>(a, batch, begin, end, scratch);
  blocks_as<FloatTile<fp16>>(a, batch, begin, end, scratch);
}

void blocks(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin, std::int64_t end,
            float* scratch) {
  if (bits_summed(a)) return bits_run(a, batch, begin, end, scratch);
  for (; begin < end; begin += headrace::kScoreSpan) {
    const std::int64_t next = begin + headrace::kScoreSpan;
    one_span(a, batch, begin, next < end ? next : end, scratch);
  }
}

}  // namespace
