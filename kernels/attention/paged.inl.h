// SPDX-License-Identifier: Apache-2.0
// Attention of a block of query rows over a view of pages.
#pragma once
#include "products.inl.h"
#include "scale.inl.h"

namespace {

using headrace::PagedArgs;
using headrace::PagedItem;
using headrace::Range;

inline const float* sink_of(const headrace::Softmax& s, int head) {
  return s.sink_logits ? s.sink_logits + head : nullptr;
}

inline std::int64_t token_of(const PagedItem& it, int position) {
  return it.tokens ? it.tokens[position] : it.row + position;
}

// Rows of one head of an item.
inline Rows of_head(const Rows& all, int rows, int index) {
  const std::int64_t at = static_cast<std::int64_t>(rows) * index;
  return {all.o + at * all.dim, all.m + at, all.l + at, rows, all.dim};
}

// Keys of an entry's page, from the item's first head on.
template <class T>
inline const T* keys_of(const PagedArgs& a, const PagedItem& it, const std::int64_t* entry) {
  return static_cast<const T*>(a.k) + entry[headrace::kPage] * a.k_page + it.kv_head * a.k_head;
}

// The item's share of one entry: slots [begin, end) of a page. Logits, weights and values are each
// taken head after head, as heads lie in a page: a long run is what memory gives fast. `upcoming`
// is what is read next. Logits are to be multiplied by `scale`; see the products for `exact`.
template <class P, class T>
inline void paged_slots(const PagedArgs& a, const PagedItem& it, const std::int64_t* entry,
                        const T* upcoming, std::int64_t begin, std::int64_t end, const float* q,
                        const float* q_units, float* units, float scale, bool exact, const Rows& st,
                        float* s, int* ranges, bool careful) {
  const int group = a.q_heads / a.kv_heads, dim = a.dim, rows = it.positions * group;
  const std::int64_t slot = entry[headrace::kFirst];
  const T* k = keys_of<T>(a, it, entry);
  const T* v =
      static_cast<const T*>(a.v) + entry[headrace::kPage] * a.v_page + it.kv_head * a.v_head;
  // Tiles start on a vector, so that the partial ones at the ends never leave the page.
  for (std::int64_t t = begin; t < end;) {
    const std::int64_t base = t - t % kW;
    const std::int64_t stop = base + kTile < end ? base + kTile : end;
    const int cols = static_cast<int>((stop - base + kW - 1) / kW * kW);
    const int column = static_cast<int>(t - base);
    const std::int64_t tile_bytes = static_cast<std::int64_t>(cols) * dim * sizeof(T);
    for (int i = 0; i < it.positions; ++i) {
      const std::int64_t at = a.q_order[token_of(it, i)];
      const Range row = headrace::visible(at, at, entry[headrace::kOrder], entry[headrace::kReach],
                                          entry[headrace::kCount]);
      ranges[2 * i] = static_cast<int>(headrace::clamp(slot + row.lo, t, stop) - t);
      ranges[2 * i + 1] = static_cast<int>(headrace::clamp(slot + row.hi, t, stop) - t);
    }
    for (int head = 0; head < it.heads; ++head) {
      const T* own = k + head * a.k_head + base;
      const T* next = head + 1 < it.heads ? own + a.k_head : v + base * dim;
      pull_scales(scales_of<T>(a.k_scale, entry, it.kv_head + head), base, cols);
      pull_scales(scales_of<T>(a.v_scale, entry, it.kv_head + head), base, cols);
      P::logits(q + head * rows * dim, q_units + head * rows, dim, own, a.page_size,
                s + head * rows * kTile, rows, cols, scale, exact, next, tile_bytes);
    }
    for (int head = 0; head < it.heads; ++head) {
      float* own = s + head * rows * kTile;
      const SlotScales k_scale = scales_of<T>(a.k_scale, entry, it.kv_head + head);
      const SlotScales v_scale = scales_of<T>(a.v_scale, entry, it.kv_head + head);
      if (k_scale.at) scale_logits(own, rows, k_scale, base, cols);
      softmax(own, cols, column, ranges, it.positions, group, a.softmax.softcap,
              of_head(st, rows, head));
      for (int i = 0; v_scale.at && i < it.positions; ++i) {
        scale_weights(own + i * group * kTile, group, v_scale, base, cols, column + ranges[2 * i],
                      column + ranges[2 * i + 1]);
      }
      P::weights(own, cols, rows, units + head * rows);
    }
    for (int head = 0; head < it.heads; ++head) {
      const T* own = v + head * a.v_head + t * dim;
      const T* next = head + 1 < it.heads ? own + a.v_head : stop < end ? k + stop : upcoming;
      const Rows to = of_head(st, rows, head);
      const auto add = [&](int row, int some, int first, int count) {
        P::values(s + (head * rows + row) * kTile, units + head * rows + row, column + first,
                  own + first * dim, dim, count, to.o + row * dim, some, dim, next, tile_bytes);
      };
      add_values(rows, static_cast<int>(stop - t), group, careful ? ranges : nullptr, add);
    }
    t = stop;
  }
}

// Reads the item's share of the view into the state of its rows. careful: no row touches values
// that it does not see (see add_values).
template <class P, class T>
HEADRACE_ONCE void paged_pass(const PagedArgs& a, const PagedItem& it, const Rows& st,
                              float* scratch, bool careful) {
  const int group = a.q_heads / a.kv_heads, n = it.positions, rows = n * group, dim = a.dim;
  float* plain = scratch;                 // [heads][rows][dim], scaled queries
  float* turned = plain + st.rows * dim;  // [heads][rows][dim], rotated for the current origin
  float* s = turned + st.rows * dim;      // [heads][rows][kTile]
  float* q_units = s + st.rows * kTile;   // [heads][rows]
  float* units = q_units + st.rows;       // [heads][rows]
  float* cosine = units + st.rows;        // [half]
  const int half = a.rope.half;
  float* sine = cosine + half;
  int* ranges = reinterpret_cast<int*>(sine + half);  // [n][2]

  const float cap = a.softmax.softcap;
  const float scale = cap > 0.f ? a.softmax.scale : a.softmax.scale * kLog2e;
  // Queries that are not turned go into the products as they came.
  const bool raw = P::packs_pairs && !a.rope.inv_freq;
  const auto row_of = [=](int head, int r) { return (head * rows + r) * dim; };
  for (int head = 0; head < it.heads; ++head) {
    for (int r = 0; r < rows; ++r) {
      const std::int64_t at =
          token_of(it, r / group) * a.q_row + ((it.kv_head + head) * group + r % group) * a.q_head;
      if (raw) {
        P::raw_query(a.q, at, dim, plain + row_of(head, r));
        continue;
      }
      for (int d = 0; d < dim; d += kW) {
        store(plain + row_of(head, r) + d, mul(load_any(a.q, at + d, a.q_dtype), set1(scale)));
      }
      if (!a.rope.inv_freq) P::query(plain + row_of(head, r), dim, q_units + head * rows + r);
    }
  }
  reset(st);
  if (it.resume) resume(it.resume, st);
  std::int64_t oldest = a.q_order[token_of(it, 0)], newest = oldest;
  for (int i = 1; i < n; ++i) {
    const std::int64_t order = a.q_order[token_of(it, i)];
    oldest = order < oldest ? order : oldest;
    newest = order > newest ? order : newest;
  }

  const float* q = plain;
  std::int64_t passed = 0;  // visible tokens of the entries before this one
  const std::int64_t* turned_for = nullptr;
  for (std::int64_t e = it.entry; e < it.entry + it.entries && passed < it.share.end; ++e) {
    const std::int64_t* entry = a.entries + e * a.fields;
    const Range seen = headrace::visible(oldest, newest, entry[headrace::kOrder],
                                         entry[headrace::kReach], entry[headrace::kCount]);
    const std::int64_t mine = headrace::clamp(it.share.begin - passed, 0, seen.hi - seen.lo);
    const std::int64_t upto = headrace::clamp(it.share.end - passed, 0, seen.hi - seen.lo);
    passed += seen.hi - seen.lo;
    if (mine >= upto) continue;

    if (a.rope.inv_freq && (!turned_for || !headrace::same_turn(turned_for, entry, a.rope.axes))) {
      turned_for = entry;
      for (int i = 0; i < n; ++i) {
        query_angles(a.rope, a.q_pos + token_of(it, i) * a.rope.axes, entry, cosine, sine);
        for (int head = 0; head < it.heads; ++head) {
          for (int r = i * group; r < (i + 1) * group; ++r) {
            rotate(plain + row_of(head, r), cosine, sine, half, dim, turned + row_of(head, r));
            P::query(turned + row_of(head, r), dim, q_units + head * rows + r);
          }
        }
      }
      q = turned;
    }

    const bool last = e + 1 == it.entry + it.entries;
    const std::int64_t first = entry[headrace::kFirst] + seen.lo;
    paged_slots<P, T>(a, it, entry, last ? nullptr : keys_of<T>(a, it, entry + a.fields),
                      first + mine, first + upto, q, q_units, units, raw ? scale : 1.f, raw, st, s,
                      ranges, careful);
  }
}

// The share of one head of an item: heads keep their partial states one after the other.
inline headrace::Share share_of(const PagedItem& it, int rows, int dim, int head) {
  headrace::Share share = it.share;
  if (share.partial) {
    share.partial += static_cast<std::int64_t>(head) * share.splits * rows * (dim + 2);
  }
  return share;
}

template <class P, class T>
inline void paged_block(const PagedArgs& a, const PagedItem& it, float* scratch) {
  const int group = a.q_heads / a.kv_heads, rows = it.positions * group, dim = a.dim;
  const int all = rows * it.heads;
  float* m = scratch + all * dim;
  const Rows st{scratch, m, m + all, all, dim};
  float* rest = scratch + all * dim + (2 * all + kW - 1) / kW * kW;
  paged_pass<P, T>(a, it, st, rest, false);
  if (it.positions > 1 && !finite(st)) paged_pass<P, T>(a, it, st, rest, true);

  for (int head = 0; head < it.heads; ++head) {
    const Rows own = of_head(st, rows, head);
    if (it.keep) {
      for (int r = 0; r < rows; ++r) {
        const headrace::State& to = it.keep[r / group];
        keep_row(own, r, to.at + head * to.head + r % group * (dim + 2));
      }
      continue;
    }
    if (it.share.splits > 1) {
      keep_partial(share_of(it, rows, dim, head), own);
      continue;
    }
    for (int r = 0; r < rows; ++r) {
      const int q_head = (it.kv_head + head) * group + r % group;
      const std::int64_t at = (it.row + r / group) * a.q_heads + q_head;
      finish_row(own.o + r * dim, own.m[r], own.l[r], dim, sink_of(a.softmax, q_head), a.o,
                 at * dim, a.q_dtype, a.lse + at);
    }
  }
}

// Whether queries and weights may become whole numbers: where the result is rounded to bf16.
inline bool takes_whole(const PagedArgs& a) {
  return a.kv_dtype == headrace::kI8 && a.q_dtype == headrace::kBF16;
}

inline void paged_merge(const PagedArgs& a, const PagedItem& it) {
  const int group = a.q_heads / a.kv_heads, rows = it.positions * group;
  for (int head = 0; head < it.heads; ++head) {
    const headrace::Share share = share_of(it, rows, a.dim, head);
    for (int r = 0; r < rows; ++r) {
      const int q_head = (it.kv_head + head) * group + r % group;
      const std::int64_t at = (it.row + r / group) * a.q_heads + q_head;
      merge_splits(share, r, rows, a.dim, sink_of(a.softmax, q_head), a.o, at * a.dim, a.q_dtype,
                   a.lse + at);
    }
  }
}

}  // namespace
