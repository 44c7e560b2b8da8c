// SPDX-License-Identifier: Apache-2.0
// Attention of a block of query rows over contiguous keys, in the layout of
// scaled_dot_product_attention. Only the tiles that the block can see are read.
#pragma once
#include "blocks.h"
#include "paged.inl.h"

namespace {

using headrace::BlockRow;
using headrace::DenseArgs;
using headrace::DenseItem;

// Tiles of the keys and values of one kv head, packed; blocks of queries that lie near each other
// find them as the one before left them.
template <class P, class T>
struct Tiles {
  const DenseArgs& a;
  float* cache;
  std::int64_t head;
  const T *k, *v;

  bool packs_values() const { return P::packs_values && a.cached > 1; }
  float* keys(std::int64_t slot) const {
    return cache + headrace::owner_words(a.cached) + slot * kTile * a.dim;
  }
  float* values(std::int64_t slot) const { return keys(a.cached + slot); }
  // Sinks have a slot of their own.
  std::int64_t slot_of(std::int64_t tile, bool sink) const {
    return a.cached == 1 ? 0 : sink ? a.cached - 1 : tile % (a.cached - 1);
  }
  std::int64_t& owner(std::int64_t slot) const {
    return reinterpret_cast<std::int64_t*>(cache)[slot];
  }
  std::int64_t name(std::int64_t tile) const {
    return head * ((a.k_len + kTile - 1) / kTile) + tile;
  }

  std::int64_t pack(std::int64_t tile, bool sink) const {
    const std::int64_t slot = slot_of(tile, sink), first = tile * kTile;
    if (owner(slot) == name(tile)) return slot;
    const int tokens = static_cast<int>(a.k_len - first < kTile ? a.k_len - first : kTile);
    P::pack(k + first * a.k_row, a.k_row, tokens, a.dim, keys(slot));
    if constexpr (P::packs_values) {
      if (packs_values()) {
        P::pack_values(v + first * a.v_row, a.v_row, tokens, a.dim, values(slot));
      }
    }
    owner(slot) = name(tile);
    return slot;
  }
  // The packed keys of a tile of the window if they are there, else null.
  const float* ready(std::int64_t tile) const {
    const std::int64_t slot = slot_of(tile, false);
    return owner(slot) == name(tile) ? keys(slot) : nullptr;
  }
};

// Adds the weighted values of keys [t, stop), all of one tile, to the rows.
template <class P, class T>
inline void add_tile(const Tiles<P, T>& tiles, std::int64_t slot, const float* s, std::int64_t t,
                     std::int64_t stop, const Rows& st, int group, const int* ranges) {
  const int column = static_cast<int>(t % kW), tokens = static_cast<int>(stop - t);
  const auto add = [&](int row, int rows, int first, int count) {
    float* o = st.o + row * st.dim;
    const float* weights = s + row * kTile;
    if constexpr (P::packs_values) {
      if (tiles.packs_values()) {
        return P::packed_values(weights, column + first, tiles.values(slot),
                                static_cast<int>(t % kTile) + first, count, o, rows, st.dim,
                                tiles.ready(t / kTile + 1), kTile * st.dim * sizeof(float));
      }
    }
    P::values(weights, nullptr, column + first, tiles.v + (t + first) * tiles.a.v_row,
              tiles.a.v_row, count, o, rows, st.dim, nullptr, 0);
  };
  add_values(st.rows, tokens, group, ranges, add);
}

// As paged_pass, over contiguous keys.
template <class P, class T>
HEADRACE_ONCE void dense_pass(const DenseArgs& a, const DenseItem& it, const Rows& st, float* cache,
                              float* scratch, bool careful) {
  const int heads = it.heads, n = it.positions, rows = st.rows, dim = a.dim;
  const int kv_head = it.head / (a.q_heads / a.kv_heads);
  float* q = scratch;                                      // [rows][dim]
  float* s = q + rows * dim;                               // [rows][kTile]
  int* ranges = reinterpret_cast<int*>(s + rows * kTile);  // [n][2]

  const float cap = a.softmax.softcap;
  const float scale = cap > 0.f ? a.softmax.scale : a.softmax.scale * kLog2e;
  for (int r = 0; r < rows; ++r) {
    const std::int64_t at = it.batch * a.q_batch + (it.head + r % heads) * a.q_head +
                            (it.position + r / heads) * a.q_row;
    if (P::packs_pairs) {
      P::raw_query(a.q, at, dim, q + r * dim);
      continue;
    }
    for (int d = 0; d < dim; d += kW) {
      store(q + r * dim + d, mul(load_any(a.q, at + d, a.dtype), set1(scale)));
    }
  }
  reset(st);
  const std::int64_t oldest = it.position + a.k_len - a.q_len, newest = oldest + n - 1;
  const T* k = static_cast<const T*>(a.k) + it.batch * a.k_batch + kv_head * a.k_head;
  const T* v = static_cast<const T*>(a.v) + it.batch * a.v_batch + kv_head * a.v_head;
  const Tiles<P, T> tiles{a, cache, static_cast<std::int64_t>(it.batch) * a.kv_heads + kv_head, k,
                          v};

  std::int64_t passed = 0;
  for (int part = 0; part < 2 && passed < it.share.end; ++part) {
    const Range seen =
        part == 0 ? headrace::visible_sinks(newest, a.sinks, a.k_len, a.causal)
                  : headrace::visible_window(oldest, newest, a.sinks, a.window, a.k_len, a.causal);
    const BlockRow blocks = part == 0 ? BlockRow{} : headrace::block_row(a, it);
    for (Range run = headrace::next_run(blocks, seen.lo, seen.hi);
         run.lo < seen.hi && passed < it.share.end;
         run = headrace::next_run(blocks, run.hi, seen.hi)) {
      const std::int64_t keys_here = run.hi - run.lo;
      const std::int64_t begin = run.lo + headrace::clamp(it.share.begin - passed, 0, keys_here);
      const std::int64_t end = run.lo + headrace::clamp(it.share.end - passed, 0, keys_here);
      passed += keys_here;
      for (std::int64_t t = begin; t < end;) {
        // Tiles lie at multiples of kTile; of their columns, whole vectors are used.
        const std::int64_t tile = t / kTile, base = t / kW * kW;
        const std::int64_t stop = (tile + 1) * kTile < end ? (tile + 1) * kTile : end;
        const int cols = static_cast<int>((stop - base + kW - 1) / kW * kW);
        const std::int64_t slot = tiles.pack(tile, part == 0);
        const void* next = tiles.packs_values() ? static_cast<const void*>(tiles.values(slot))
                           : a.v_row == dim     ? v + t * dim
                                                : nullptr;
        const std::int64_t bytes =
            (stop - t) * dim * (tiles.packs_values() ? sizeof(float) : sizeof(T));
        P::packed_logits(q, dim, tiles.keys(slot) + base % kTile, s, rows, cols, scale, next,
                         bytes);
        for (int i = 0; i < n; ++i) {
          const std::int64_t at = oldest + i;
          const Range row =
              part == 0 ? headrace::visible_sinks(at, a.sinks, a.k_len, a.causal)
                        : headrace::visible_window(at, at, a.sinks, a.window, a.k_len, a.causal);
          ranges[2 * i] = static_cast<int>(headrace::clamp(row.lo, t, stop) - t);
          ranges[2 * i + 1] = static_cast<int>(headrace::clamp(row.hi, t, stop) - t);
        }
        softmax(s, cols, static_cast<int>(t - base), ranges, n, heads, cap, st);
        P::weights(s, cols, rows, nullptr);
        add_tile(tiles, slot, s, t, stop, st, heads, careful ? ranges : nullptr);
        t = stop;
      }
    }
  }
}

template <class P, class T>
inline void dense_block(const DenseArgs& a, const DenseItem& it, float* cache) {
  float* scratch = cache + headrace::cache_words(a);
  const int heads = it.heads, rows = it.positions * heads, dim = a.dim;
  float* m = scratch + rows * dim;
  const Rows st{scratch, m, m + rows, rows, dim};
  float* rest = scratch + rows * dim + (2 * rows + kW - 1) / kW * kW;
  dense_pass<P, T>(a, it, st, cache, rest, false);
  if (it.positions > 1 && !finite(st)) dense_pass<P, T>(a, it, st, cache, rest, true);

  if (it.share.splits > 1) return keep_partial(it.share, st);
  for (int r = 0; r < rows; ++r) {
    const int head = it.head + r % heads;
    const std::int64_t at = (static_cast<std::int64_t>(it.batch) * a.q_heads + head) * a.q_len +
                            it.position + r / heads;
    finish_row(st.o + r * dim, st.m[r], st.l[r], dim, sink_of(a.softmax, head), a.o, at * dim,
               a.dtype, a.lse + at);
  }
}

void dense(const DenseArgs& a, const DenseItem& it, float* scratch) {
#ifdef HEADRACE_DOTS
  if (a.dtype == headrace::kBF16) return dense_block<Paired, bf16>(a, it, scratch);
#endif
  if (a.dtype == headrace::kF32) return dense_block<Widened, float>(a, it, scratch);
  if (a.dtype == headrace::kBF16) return dense_block<Widened, bf16>(a, it, scratch);
  return dense_block<Widened, fp16>(a, it, scratch);
}

void dense_merge(const DenseArgs& a, const DenseItem& it) {
  const int heads = it.heads, rows = it.positions * heads;
  for (int r = 0; r < rows; ++r) {
    const int head = it.head + r % heads;
    const std::int64_t at = (static_cast<std::int64_t>(it.batch) * a.q_heads + head) * a.q_len +
                            it.position + r / heads;
    merge_splits(it.share, r, rows, a.dim, sink_of(a.softmax, head), a.o, at * a.dim, a.dtype,
                 a.lse + at);
  }
}

}  // namespace
