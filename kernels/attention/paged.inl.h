// SPDX-License-Identifier: Apache-2.0
// Attention of a block of query rows over a view of pages.
#pragma once
#include "tile.inl.h"

namespace {

using headrace::PagedArgs;
using headrace::PagedItem;
using headrace::Range;

inline const float* sink_of(const headrace::Softmax& s, int head) {
  return s.sink_logits ? s.sink_logits + head : nullptr;
}

// Reads the item's share of the view into the state of its rows. careful: no row touches values
// that it does not see (see add_values).
template <class T>
inline void paged_pass(const PagedArgs& a, const PagedItem& it, const Rows& st, float* scratch,
                       bool careful) {
  const int group = a.q_heads / a.kv_heads, n = it.positions, rows = st.rows, dim = a.dim;
  float* plain = scratch;              // [rows][dim], scaled queries
  float* turned = plain + rows * dim;  // [rows][dim], rotated for the current origin
  float* s = turned + rows * dim;      // [rows][kTile]
  float* cosine = s + rows * kTile;    // [n][half]
  float* sine = cosine + n * a.half;
  int* ranges = reinterpret_cast<int*>(sine + n * a.half);  // [n][2]
  const std::int64_t* pos = a.q_pos + it.row;
  const std::int64_t* order = a.q_order + it.row;

  const float cap = a.softmax.softcap;
  const F scale = set1(cap > 0.f ? a.softmax.scale : a.softmax.scale * kLog2e);
  for (int r = 0; r < rows; ++r) {
    const std::int64_t at =
        (it.row + r / group) * a.q_row + (it.kv_head * group + r % group) * a.q_head;
    for (int d = 0; d < dim; d += kW) {
      store(plain + r * dim + d, mul(load_any(a.q, at + d, a.q_dtype), scale));
    }
  }
  reset(st);
  std::int64_t oldest = order[0], newest = order[0];
  for (int i = 1; i < n; ++i) {
    oldest = order[i] < oldest ? order[i] : oldest;
    newest = order[i] > newest ? order[i] : newest;
  }

  const float* q = plain;
  std::int64_t passed = 0;  // visible tokens of the entries before this one
  std::int64_t last_origin = 0, last_cap = -1;
  for (std::int64_t e = it.entry; e < it.entry + it.entries && passed < it.share.end; ++e) {
    const std::int64_t* entry = a.entries + e * headrace::kEntryFields;
    const Range seen = headrace::visible(oldest, newest, entry[headrace::kOrder],
                                         entry[headrace::kReach], entry[headrace::kCount]);
    const std::int64_t mine = headrace::clamp(it.share.begin - passed, 0, seen.hi - seen.lo);
    const std::int64_t upto = headrace::clamp(it.share.end - passed, 0, seen.hi - seen.lo);
    passed += seen.hi - seen.lo;
    if (mine >= upto) continue;

    if (a.inv_freq && (q == plain || last_origin != entry[headrace::kOrigin] ||
                       last_cap != entry[headrace::kCap])) {
      last_origin = entry[headrace::kOrigin];
      last_cap = entry[headrace::kCap];
      for (int i = 0; i < n; ++i) {
        float *c = cosine + i * a.half, *sn = sine + i * a.half;
        angles(headrace::distance(pos[i], last_origin, last_cap), a.inv_freq, a.half, c, sn);
        for (int r = i * group; r < (i + 1) * group; ++r) {
          rotate(plain + r * dim, c, sn, a.half, dim, turned + r * dim);
        }
      }
      q = turned;
    }

    const std::int64_t slot = entry[headrace::kFirst];
    const T* k =
        static_cast<const T*>(a.k) + entry[headrace::kPage] * a.k_page + it.kv_head * a.k_head;
    const T* v =
        static_cast<const T*>(a.v) + entry[headrace::kPage] * a.v_page + it.kv_head * a.v_head;
    const T* upcoming = nullptr;
    if (e + 1 < it.entry + it.entries) {
      upcoming = static_cast<const T*>(a.k) +
                 (entry + headrace::kEntryFields)[headrace::kPage] * a.k_page +
                 it.kv_head * a.k_head;
    }
    const std::int64_t end = slot + seen.lo + upto;
    // Tiles start on a vector, so that the partial ones at the ends never leave the page.
    for (std::int64_t t = slot + seen.lo + mine; t < end;) {
      const std::int64_t base = t - t % kW;
      const std::int64_t stop = base + kTile < end ? base + kTile : end;
      const int cols = static_cast<int>((stop - base + kW - 1) / kW * kW);
      const std::int64_t tile_bytes = static_cast<std::int64_t>(cols) * dim * sizeof(T);
      product<false>(q, dim, k + base, a.page_size, dim, s, kTile, rows, cols, v + base * dim,
                     tile_bytes);
      for (int r = 0; r < rows; ++r) {
        const std::int64_t at = order[r / group];
        const Range row = headrace::visible(at, at, entry[headrace::kOrder],
                                            entry[headrace::kReach], entry[headrace::kCount]);
        const int lo = static_cast<int>(headrace::clamp(slot + row.lo, t, stop) - base);
        const int hi = static_cast<int>(headrace::clamp(slot + row.hi, t, stop) - base);
        softmax_row(s + r * kTile, cols, lo, hi, cap, r, st);
        ranges[r / group * 2] = lo - static_cast<int>(t - base);
        ranges[r / group * 2 + 1] = hi - static_cast<int>(t - base);
      }
      const T* next = stop < end ? k + stop : upcoming;
      add_values(s + (t - base), v + t * dim, dim, static_cast<int>(stop - t), st, group,
                 careful ? ranges : nullptr, next, tile_bytes);
      t = stop;
    }
  }
}

template <class T>
inline void paged_block(const PagedArgs& a, const PagedItem& it, float* scratch) {
  const int group = a.q_heads / a.kv_heads, rows = it.positions * group, dim = a.dim;
  float* m = scratch + rows * dim;
  const Rows st{scratch, m, m + rows, rows, dim};
  float* rest = scratch + rows * dim + (2 * rows + kW - 1) / kW * kW;
  paged_pass<T>(a, it, st, rest, false);
  if (it.positions > 1 && !finite(st)) paged_pass<T>(a, it, st, rest, true);

  if (it.share.splits > 1) return keep_partial(it.share, st);
  for (int r = 0; r < rows; ++r) {
    const int head = it.kv_head * group + r % group;
    const std::int64_t at = (it.row + r / group) * a.q_heads + head;
    finish_row(st.o + r * dim, st.m[r], st.l[r], dim, sink_of(a.softmax, head), a.o, at * dim,
               a.q_dtype, a.lse + at);
  }
}

void paged(const PagedArgs& a, const PagedItem& it, float* scratch) {
  if (a.kv_dtype == headrace::kF32) return paged_block<float>(a, it, scratch);
  if (a.kv_dtype == headrace::kBF16) return paged_block<bf16>(a, it, scratch);
  return paged_block<fp16>(a, it, scratch);
}

void paged_merge(const PagedArgs& a, const PagedItem& it) {
  const int group = a.q_heads / a.kv_heads, rows = it.positions * group;
  for (int r = 0; r < rows; ++r) {
    const int head = it.kv_head * group + r % group;
    const std::int64_t at = (it.row + r / group) * a.q_heads + head;
    merge_splits(it.share, r, rows, a.dim, sink_of(a.softmax, head), a.o, at * a.dim, a.q_dtype,
                 a.lse + at);
  }
}

}  // namespace
