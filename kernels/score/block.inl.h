// SPDX-License-Identifier: Apache-2.0
// Scores of blocks by what stands for them: means (or single keys), lower and upper bounds, or
// bits.
#pragma once
#include "block_tiles.inl.h"

namespace {

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
  if (kBits && a.dtype == headrace::kScoreInt) {
    return blocks_as<BitTile>(a, batch, begin, end, scratch);
  }
  by_type(a.dtype,
          [&](auto x) { blocks_as<FloatTile<decltype(x)>>(a, batch, begin, end, scratch); });
}

void blocks(const BlockScoreArgs& a, std::int64_t batch, std::int64_t begin, std::int64_t end,
            float* scratch) {
  if (kBits && bits_summed(a)) return bits_run(a, batch, begin, end, scratch);
  for (; begin < end; begin += headrace::kScoreSpan) {
    const std::int64_t next = begin + headrace::kScoreSpan;
    one_span(a, batch, begin, next < end ? next : end, scratch);
  }
}

}  // namespace
