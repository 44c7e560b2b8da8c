// SPDX-License-Identifier: Apache-2.0
// Tiles of keys and values on tensor cores: queries of 16 bits over pages of 16 or 8 bits.
//
// The 16 rows of a product are the query heads of a kv head, of as many splits as read the same
// keys. Pages lie as the products want them: 8 tokens of two rows of a transposed key page, and 8
// dimensions of two value rows, are 8 words of a fragment, so that nothing passes through shared
// memory. Which token a column of logits means is ours to choose: the lane that gets a logit is the
// one whose weights the second product takes from it. Turned queries and weights are each two
// numbers of 16 bits, a value and what rounding took, so that only keys and values are rounded.
#pragma once
#include "decode.cuh"
#include "kernels/common/matrix.cuh"

namespace headrace {
namespace {

constexpr int kTileRows = 16;

// fp16 has room for any query turned by a gain of up to 2, and for weights down to 2^-37.
template <class H>
constexpr float kQueryUnit = kIsHalf<H> ? 0.25f : 1.f;
template <class H>
constexpr float kWeightUnit = kIsHalf<H> ? 8192.f : 1.f;

// One unit of work: splits that read the same keys, the query heads that it takes of each, and the
// first dimension of its values. Row r of its products is head r % heads of split r / heads.
struct Unit {
  const int32_t* pack;  // null: the one split `item`
  int item, count, kv_head, head0, heads, depth0;

  __device__ int split(int m) const { return pack ? pack[m] : item; }
};

__device__ inline Unit unit_of(const Decode& a, int unit, int shared, int passes, int parts) {
  const int part = unit % parts, group = a.q_heads / a.kv_heads;
  unit /= parts;
  const int pass = unit % passes;
  unit /= passes;
  Unit u{nullptr, unit / shared, 1, unit % shared, 0, 0, part * 128};
  if (a.packs) {
    u.pack = a.packs + 1 + int64_t{u.item} * a.fit;
    while (u.count < a.fit && u.pack[u.count] >= 0) ++u.count;
  }
  if (a.lists > 1) u.kv_head = a.splits[u.split(0)].list;
  u.head0 = u.kv_head * group + pass * kTileRows;
  u.heads = group - pass * kTileRows < kTileRows ? group - pass * kTileRows : kTileRows;
  return u;
}

// Writes dimension d of row r of the queries into the fragments of `steps` products, and what
// rounding took into those behind them.
template <class H>
__device__ inline void put_query(uint4* slab, int steps, int r, int d, float x) {
  uint32_t top, rest;
  split_pair<H>(x, 0.f, &top, &rest);
  const int k = d % 16, lane = r % 8 * 4 + k % 8 / 2, word = k / 8 * 2 + r / 8;
  uint16_t* to = reinterpret_cast<uint16_t*>(slab) + ((d / 16 * 32 + lane) * 4 + word) * 2 + k % 2;
  to[0] = static_cast<uint16_t>(top);
  to[steps * 256] = static_cast<uint16_t>(rest);
}

// The queries of a unit, turned for an entry; dimensions that do not turn only the first time.
template <class H, int C>
__device__ inline void turn_queries(const Decode& a, const Unit& u, const int64_t (&step)[C],
                                    const int64_t* entry, bool first, int lane, uint4* slab) {
  for (int m = 0; m < u.count; ++m) {
    const int64_t row = a.splits[u.split(m)].row, from = row * a.q_row + u.head0 * a.q_head;
    const auto query = [&](int h, int d) {
      return load_any(a.q, from + h * a.q_head + d, a.q_dtype) * kQueryUnit<H>;
    };
    const auto put = [&](int h, int d, float x) {
      put_query<H>(slab, 4 * C, m * u.heads + h, d, x);
    };
    const Steps away = steps_to(a.q_pos + row * a.axes, entry, a.axes);
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const int i = lane + 32 * j;
      if (i >= a.half) break;
      float c, s;
      cos_sin(phase(away.along(a.freq_axis ? a.freq_axis[i] : 0), step[j]), &c, &s);
      c *= a.rope_gain;
      s *= a.rope_gain;
      for (int h = 0; h < u.heads; ++h) {
        const float x = query(h, i), y = query(h, i + a.half);
        put(h, i, x * c - y * s);
        put(h, i + a.half, y * c + x * s);
      }
    }
    for (int d = 2 * a.half + lane; first && d < a.dim; d += 32) {
      for (int h = 0; h < u.heads; ++h) put(h, d, query(h, d));
    }
  }
}

// The slots of a page that one warp takes together, and those of them that rows see.
struct Tile {
  int base, from, to;
  __device__ bool sees(int slot) const { return slot >= from && slot < to; }
};

// s[j]: logits of rows g and g + 8, of slots 16t + j and 16t + 8 + j. keys: the page's, from the
// tile's first slot on.
template <class T, class H, int C>
__device__ inline void multiply_keys(const T* keys, const Tile& tile, int page_size, int dim,
                                     const uint4* slab, int lane, float (&s)[8][4]) {
  using Row = Vec<T, 8>;
  const int g = lane / 4, t = lane % 4, slot = tile.base + 8 * g;
  const bool touched = slot < tile.to && slot + 8 > tile.from;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[j][i] = 0.f;
  }
  const T* from = keys + 8 * g + 2 * t * page_size;
#pragma unroll 2
  for (int i = 0; i < dim / 16; ++i) {
    Row rows[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int d = 16 * i + r % 2 + r / 2 * 8;
      rows[r] = touched ? load_vec<Row>(from + d * page_size) : Row{};
    }
    const uint4 top = slab[i * 32 + lane], rest = slab[(4 * C + i) * 32 + lane];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t b0 = pair_of(rows[0], rows[1], j), b1 = pair_of(rows[2], rows[3], j);
      multiply_add<H>(s[j], rest, b0, b1);
      multiply_add<H>(s[j], top, b0, b1);
    }
  }
}

// The running state of rows g and g + 8: maxima, sums of this lane's slots, and outputs; o[c][j] is
// of dimensions 64c + 16t + j and 64c + 16t + 8 + j.
template <int C>
struct Running {
  float m[2], l[2], o[C][8][4];
};

// Logits to weights, in place, and the state to their maxima. scales: of the page's keys.
template <class T, class H, int C>
__device__ inline void weigh(const Decode& a, const Tile& tile, const float* scales, int lane,
                             float (&s)[8][4], Running<C>* st) {
  const float scale = (a.softcap > 0.f ? a.scale : a.scale * kLog2e) / kQueryUnit<H>;
  const int t = lane % 4;
  const auto slot_of = [&](int j, int i) { return tile.base + 16 * t + i % 2 * 8 + j; };
  float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = slot_of(j, i);
      float by = scale;
      if constexpr (kCodes<T>) by *= tile.sees(slot) ? scales[slot * a.k_scale_slot] : 0.f;
      float x = s[j][i] * by;
      if (a.softcap > 0.f) x = soft_cap(x, a.softcap) * kLog2e;
      s[j][i] = tile.sees(slot) ? x : -INFINITY;
      top[i / 2] = fmaxf(top[i / 2], s[j][i]);
    }
  }
  float shift[2], shrink[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    top[r] = fmaxf(top[r], __shfl_xor_sync(kAll, top[r], 1));
    top[r] = fmaxf(top[r], __shfl_xor_sync(kAll, top[r], 2));
    top[r] = fmaxf(top[r], st->m[r]);
    shift[r] = finite_base(top[r]);
    shrink[r] = exp2f(st->m[r] - shift[r]);
    st->m[r] = top[r];
    st->l[r] *= shrink[r];
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[j][i] = exp2f(s[j][i] - shift[i / 2]);
      st->l[i / 2] += s[j][i];
    }
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) st->o[c][j][i] *= shrink[i / 2];
    }
  }
}

// Adds weighted values: the weights that a lane holds are those that its fragments ask for, when
// the n-th product takes slots 16t + 2n, 16t + 8 + 2n and those after them as its rows. scales: of
// the page's values, one every `stride` slots.
template <class T, class H, int C>
__device__ inline void multiply_values(const T* values, const float* scales, int stride,
                                       const Tile& tile, int dim, int depth0, int lane,
                                       const float (&s)[8][4], Running<C>* st) {
  using Row = Vec<T, 8>;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    float by[4] = {kWeightUnit<H>, kWeightUnit<H>, kWeightUnit<H>, kWeightUnit<H>};
    if constexpr (kCodes<T>) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int slot = tile.base + 16 * t + 2 * n + i % 2 + i / 2 * 8;
        by[i] = tile.sees(slot) ? scales[slot * stride] : 0.f;
      }
    }
    const auto weights = [&](int i, uint32_t* top, uint32_t* rest) {
      const float* by_two = by + i % 2 * 2;
      split_pair<H>(s[2 * n][i] * by_two[0], s[2 * n + 1][i] * by_two[1], top, rest);
    };
    uint4 top, rest;
    weights(0, &top.x, &rest.x);
    weights(2, &top.y, &rest.y);
    weights(1, &top.z, &rest.z);
    weights(3, &top.w, &rest.w);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (c > 0 && depth0 + 64 * c >= dim) break;
      const int d = depth0 + 64 * c + 8 * g;
      Row rows[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int slot = tile.base + 16 * t + 2 * n + r % 2 + r / 2 * 8;
        // A value that no row sees may be anything: it is not read.
        const bool read = d < dim && tile.sees(slot);
        rows[r] = read ? load_vec<Row>(values + slot * dim + d) : Row{};
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const uint32_t b0 = pair_of(rows[0], rows[1], j), b1 = pair_of(rows[2], rows[3], j);
        multiply_add<H>(st->o[c][j], rest, b0, b1);
        multiply_add<H>(st->o[c][j], top, b0, b1);
      }
    }
  }
}

}  // namespace
}  // namespace headrace
