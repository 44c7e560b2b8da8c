// SPDX-License-Identifier: Apache-2.0
// Keys and values into slots of pages, and what the slots held into a linear-attention state: one
// visit to a slot reads the old and writes the new. A block of evicted tokens is gathered as rows
// of floats and then meets the state in one pass; an element of the state adds its tokens one after
// the other, so no bit knows the blocks.
#pragma once
#include "args.h"
#include "kernels/attention/append_rows.inl.h"
#include "kernels/linear_attention/absorb.inl.h"

namespace {

using headrace::AppendAbsorbArgs;
using headrace::kAbsorbBlock;

// Rows of a state that are asked for before its head begins.
constexpr int kFirstRows = 48;

// cos and sin, [kAbsorbBlock][half] each.
struct Turns {
  float *c, *s;
};

// What a block of tokens needs for all heads.
struct AbsorbBlock {
  Turns write, back, numerator;  // of new keys; of old ones to unrotated; to where the state is
  float *k, *phi, *v;            // [kAbsorbBlock][dim]: what the state takes
  float *old, *turned, *row;     // [kRun][dim] twice, [dim]
};

inline AbsorbBlock layout(const AppendAbsorbArgs& a, float* at) {
  const auto take = [&](std::int64_t words) {
    float* here = at;
    at += words;
    return here;
  };
  const std::int64_t table = kAbsorbBlock * a.append.rope.half, rows = kAbsorbBlock * a.append.dim;
  AbsorbBlock b;
  b.k = take(rows);
  b.phi = take(rows);
  b.v = take(rows);
  b.old = take(kRun * a.append.dim);
  b.turned = take(kRun * a.append.dim);
  b.row = take(a.append.dim);
  const auto turns = [&] { return Turns{take(table), take(table)}; };
  b.write = turns();
  b.back = turns();
  b.numerator = turns();
  return b;
}

// Whether the numerator takes the key itself, not phi of it: then one turn leads there.
inline bool direct(const AppendAbsorbArgs& a) { return a.raw || a.feature == headrace::kIdentity; }

inline void block_angles(const AppendAbsorbArgs& a, std::int64_t begin, int n,
                         const AbsorbBlock& b) {
  const headrace::Rope& rope = a.append.rope;
  const int axes = rope.axes, half = rope.half;
  append_angles(a.append, begin, n, b.write.c, b.write.s);
  for (int i = 0; i < n; ++i) {
    const std::int64_t* held = a.evicted + (begin + i) * (1 + 2 * axes);
    if (!held[0]) continue;
    std::int64_t back[3] = {0, 0, 0}, to[3] = {0, 0, 0};
    for (int x = 0; x < axes; ++x) {
      back[x] = -held[1 + x];
      to[x] = held[1 + axes + x] + (direct(a) ? back[x] : 0);
    }
    angles(back, rope, b.back.c + i * half, b.back.s + i * half);
    angles(to, rope, b.numerator.c + i * half, b.numerator.s + i * half);
  }
}

// What a code of a slot counts; 1 for floats.
template <class T>
inline float unit_of(const headrace::Scales& scales, std::int64_t page, int head,
                     std::int64_t slot) {
  if constexpr (kLargest<T> == 0.f) return 1.f;
  return scales.at[page * scales.page + head * scales.head + slot * scales.slot] * kRowUnit<T>;
}

// A row of a page as floats.
template <class T>
inline void from_codes(const T* codes, int dim, float unit, float* to) {
  const F by = set1(unit);
  for (int d = 0; d < dim; d += kW) {
    F x;
    load_row<1>(codes + d, &x);
    store(to + d, kLargest<T> == 0.f ? x : mul(x, by));
  }
}

// Keys of n consecutive slots of a page, columns there, as rows of floats; `to` has kRun rows.
template <class T>
inline void read_keys(const AppendAbsorbArgs& a, std::int64_t page, std::int64_t slot, int head,
                      int n, float* to) {
  const int dim = a.append.dim;
  const std::int64_t size = a.append.page_size;
  const T* k = static_cast<const T*>(a.append.k_pages) + page * a.append.k_page +
               head * a.append.k_page_head + slot;
  const auto unit = [&](int i) { return unit_of<T>(a.append.k_scale, page, head, slot + i); };
  if (n < kFewKeys) {
    T row[256];  // the largest dim
    for (int i = 0; i < n; ++i) {
      for (int d = 0; d < dim; ++d) row[d] = k[d * size + i];
      from_codes(row, dim, unit(i), to + i * dim);
    }
    return;
  }
  for (int i = 0; i < n; i += kW) {
    const int upto = n - i < kW ? n - i : kW;
    for (int d = 0; d < dim; d += kW) {
      F block[kW];
      for (int j = 0; j < kW; ++j) {
        const T* column = k + (d + j) * size + i;
        T narrow[kW] = {};
        if (upto < kW) column = static_cast<const T*>(memcpy(narrow, column, upto * sizeof(T)));
        load_row<1>(column, block + j);
      }
      transpose(block);
      for (int j = 0; j < upto; ++j) {
        const F x = kLargest<T> == 0.f ? block[j] : mul(block[j], set1(unit(i + j)));
        store(to + (i + j) * dim + d, x);
      }
    }
  }
}

// A key as its page holds it becomes the row that the numerator takes, and phi.
inline void absorbed_forms(const AppendAbsorbArgs& a, const float* key, int i, const AbsorbBlock& b,
                           float* numerator, float* phi) {
  const int dim = a.append.dim, half = a.append.rope.half;
  const bool turned = a.append.rope.inv_freq;
  const auto turn = [&](const float* x, const Turns& by, float* out) {
    if (!turned) return static_cast<void>(memcpy(out, x, dim * sizeof(float)));
    rotate(x, by.c + i * half, by.s + i * half, half, dim, out);
  };
  if (direct(a)) turn(key, b.numerator, numerator);
  if (direct(a) && !a.norm) return;
  turn(key, b.back, b.row);
  feature_row(b.row, dim, a.feature, phi);
  if (!direct(a)) turn(phi, b.numerator, numerator);
}

inline void fetch_row(const void* row, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(static_cast<const char*>(row) + i, 0, 2);
  }
}

// Asks for the rows that a head of a block will read: they are far apart, and no processor foresees
// them. The lines of its columns go with the state, see absorb_block.
template <class T>
inline void fetch_head(const AppendAbsorbArgs& a, std::int64_t begin, int n, int head) {
  const headrace::AppendArgs& p = a.append;
  const std::int64_t size = headrace::dtype_size(p.dtype);
  for (std::int64_t t = begin; t < begin + n; ++t) {
    const std::int64_t* at = p.where + t * (2 + p.rope.axes);
    fetch_row(static_cast<const char*>(p.k) + (t * p.k_row + head * p.k_head) * size, p.dim * size);
    fetch_row(static_cast<const char*>(p.v) + (t * p.v_row + head * p.v_head) * size, p.dim * size);
    fetch_row(
        static_cast<const T*>(p.v_pages) + at[0] * p.v_page + head * p.v_page_head + at[1] * p.dim,
        p.dim * sizeof(T));
  }
}

// The column lines of the first token of a block.
template <class T>
inline Fetch columns_of(const headrace::AppendArgs& p, std::int64_t begin, int head) {
  const std::int64_t* at = p.where + begin * (2 + p.rope.axes);
  const T* k = static_cast<const T*>(p.k_pages) + at[0] * p.k_page + head * p.k_page_head + at[1];
  return {reinterpret_cast<const char*>(k), static_cast<std::int64_t>(p.page_size * sizeof(T))};
}

template <class T>
inline void absorb_block(const AppendAbsorbArgs& a, std::int64_t begin, int n, int head, int last,
                         const AbsorbBlock& b, float* state, float* norm, float decay) {
  const headrace::AppendArgs& p = a.append;
  const int dim = p.dim, half = p.rope.half, fields = 2 + p.rope.axes;
  const auto where = [&](int i) { return p.where + (begin + i) * fields; };
  const auto held = [&](int i) { return a.evicted[(begin + i) * (1 + 2 * p.rope.axes)] != 0; };
  int taken = 0;
  for (int i = 0, end; i < n; i = end) {
    const std::int64_t page = where(i)[0], slot = where(i)[1];
    for (end = i + 1; end < n && end - i < kRun; ++end) {
      const bool follows = where(end)[0] == page && where(end)[1] == slot + end - i;
      if (!follows || held(end) != held(i)) break;
    }
    if (held(i)) {
      read_keys<T>(a, page, slot, head, end - i, b.old);
      const T* v = static_cast<const T*>(p.v_pages) + page * p.v_page + head * p.v_page_head;
      for (int j = i; j < end; ++j, ++taken) {
        absorbed_forms(a, b.old + (j - i) * dim, j, b, b.k + taken * dim, b.phi + taken * dim);
        from_codes(v + (slot + j - i) * dim, dim, unit_of<T>(p.v_scale, page, head, slot + j - i),
                   b.v + taken * dim);
      }
    }
    append_head<T>(p, begin + i, end - i, page, slot, head,
                   p.rope.inv_freq ? b.write.c + i * half : nullptr, b.write.s + i * half, b.row,
                   b.turned);
  }
  if (head + 1 < last) fetch_head<T>(a, begin, n, head + 1);
  if (!taken) return;
  absorb_rows(b.k, b.v, taken, dim, dim, decay, state,
              head + 1 < last ? columns_of<T>(p, begin, head + 1) : Fetch{nullptr, 0});
  if (norm) absorb_norm(b.phi, taken, dim, decay, norm);
}

template <class T>
inline void stream_heads(const AppendAbsorbArgs& a, std::int64_t stream, int first, int last,
                         float* scratch) {
  const std::int64_t dim = a.append.dim, row = a.rows[stream];
  const AbsorbBlock b = layout(a, scratch);
  for (std::int64_t begin = a.indptr[stream]; begin < a.indptr[stream + 1]; begin += kAbsorbBlock) {
    const std::int64_t left = a.indptr[stream + 1] - begin;
    const int n = static_cast<int>(left < kAbsorbBlock ? left : kAbsorbBlock);
    fetch_head<T>(a, begin, n, first);
    const Fetch columns = columns_of<T>(a.append, begin, first);
    for (int d = 0; d < dim; ++d) columns.row(d);
    if (a.append.rope.inv_freq) block_angles(a, begin, n, b);
    for (int head = first; head < last; ++head) {
      const std::int64_t place = row * a.append.kv_heads + head;
      float* state = a.state + place * dim * dim;
      fetch_rows(state, dim < kFirstRows ? static_cast<int>(dim) : kFirstRows,
                 static_cast<int>(dim));
      absorb_block<T>(a, begin, n, head, last, b, state, a.norm ? a.norm + place * dim : nullptr,
                      a.log_decay ? expf(a.log_decay[head]) : 1.f);
    }
  }
}

void run(const AppendAbsorbArgs& a, std::int64_t stream, int first, int last, float* scratch) {
  const int kind = a.append.page_dtype;
  if (kind == headrace::kF32) return stream_heads<float>(a, stream, first, last, scratch);
  if (kind == headrace::kBF16) return stream_heads<bf16>(a, stream, first, last, scratch);
  if (kind == headrace::kI8) return stream_heads<std::int8_t>(a, stream, first, last, scratch);
  if (kind == headrace::kE4M3) return stream_heads<e4m3>(a, stream, first, last, scratch);
  return stream_heads<fp16>(a, stream, first, last, scratch);
}

}  // namespace

extern "C" const headrace::AppendAbsorbKernels HEADRACE_JOIN(headrace_append_absorb_,
                                                             HEADRACE_LEVEL) = {run};
