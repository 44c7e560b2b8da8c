// SPDX-License-Identifier: Apache-2.0
// Rows of keys and values into slots of pages: for append, and for what appends on the way.
#pragma once
#include "tile.inl.h"

namespace {

using headrace::AppendArgs;
using headrace::kRun;

// The largest code of a quantised format; 0 for floats.
template <class T>
constexpr float kLargest = 0.f;
template <>
constexpr float kLargest<std::int8_t> = 127.f;
template <>
constexpr float kLargest<e4m3> = 448.f;

// The code of a float format; -1 for one that rows do not come in.
template <class T>
constexpr int kCode = -1;
template <>
constexpr int kCode<float> = headrace::kF32;
template <>
constexpr int kCode<bf16> = headrace::kBF16;
template <>
constexpr int kCode<fp16> = headrace::kF16;

// The scale that a row has of its own: NaN if it holds a NaN or an infinity.
inline float row_scale(const float* x, int dim, float largest) {
  F top = zero(), bad = zero();
  for (int d = 0; d < dim; d += kW) {
    const F a = load(x + d);
    top = max(max(a, sub(zero(), a)), top);
    bad = fma(a, zero(), bad);
  }
  if (hsum(bad) != 0.f) return __builtin_nanf("");
  const float most = hmax(top);
  return most < 0x1p-100f ? 0.f : most / largest;
}

// Divides a row by its scale, so that it can be stored as T; a scale per slot is written here.
template <class T>
inline void to_codes(float* x, int dim, const headrace::Scales& scales, std::int64_t page, int head,
                     std::int64_t slot) {
  if constexpr (kLargest<T> > 0.f) {
    float* scale = scales.at + page * scales.page + head * scales.head + slot * scales.slot;
    if (scales.slot) *scale = row_scale(x, dim, kLargest<T>);
    const F by = set1(*scale);
    for (int d = 0; d < dim; d += kW) {
      store(x + d, *scale == 0.f ? zero() : div(load(x + d), by));
    }
  }
}

// A row of x widened and rotated, whole vectors of pairs; see rotate.
inline void rotate_any(const void* x, std::int64_t at, int dtype, const float* c, const float* s,
                       int half, int dim, float* out) {
  for (int i = 0; i < half; i += kW) {
    const F a = load_any(x, at + i, dtype), b = load_any(x, at + i + half, dtype);
    const F cos = load(c + i), sin = load(s + i);
    store(out + i, sub(mul(a, cos), mul(b, sin)));
    store(out + i + half, fma(a, sin, mul(b, cos)));
  }
  for (int i = 2 * half; i < dim; i += kW) store(out + i, load_any(x, at + i, dtype));
}

// Fewer keys than this reach their columns one by one; a turned block would be mostly empty.
constexpr int kFewKeys = 4;

// Keys and values of n tokens, kRun at most, in consecutive slots of a page, one head: keys rotated
// about the origin of the page (row i of cosine and sine, null: not at all) and stored as columns,
// values as rows. turned is [kRun][dim].
template <class T>
inline void append_head(const AppendArgs& a, std::int64_t begin, int n, std::int64_t page,
                        std::int64_t slot, int head, const float* cosine, const float* sine,
                        float* row, float* turned) {
  const int dim = a.dim, half = a.rope.half;
  T* k = static_cast<T*>(a.k_pages) + page * a.k_page + head * a.k_page_head + slot;
  T* v = static_cast<T*>(a.v_pages) + page * a.v_page + head * a.v_page_head + slot * dim;
  const bool whole = half % kW == 0;
  for (int i = 0; i < n; ++i) {
    const std::int64_t at = (begin + i) * a.k_row + head * a.k_head;
    float* to = turned + i * dim;
    if (cosine && whole) {
      rotate_any(a.k, at, a.dtype, cosine + i * half, sine + i * half, half, dim, to);
    } else {
      float* plain = cosine ? row : to;
      for (int d = 0; d < dim; d += kW) store(plain + d, load_any(a.k, at + d, a.dtype));
      if (cosine) rotate(row, cosine + i * half, sine + i * half, half, dim, to);
    }
    to_codes<T>(to, dim, a.k_scale, page, head, slot + i);
    const std::int64_t from = (begin + i) * a.v_row + head * a.v_head;
    if (a.dtype == kCode<T>) {
      memcpy(v + i * dim, static_cast<const T*>(a.v) + from, dim * sizeof(T));
      continue;
    }
    for (int d = 0; d < dim; d += kW) store(row + d, load_any(a.v, from + d, a.dtype));
    to_codes<T>(row, dim, a.v_scale, page, head, slot + i);
    for (int d = 0; d < dim; d += kW) store(v + i * dim + d, load(row + d));
  }
  if (n < kFewKeys) {
    for (int d = 0; d < dim; d += kW) {
      T narrow[kFewKeys][kW];
      for (int i = 0; i < n; ++i) store(narrow[i], load(turned + i * dim + d));
      for (int j = 0; j < kW; ++j) {
        T* column = k + static_cast<std::int64_t>(d + j) * a.page_size;
        for (int i = 0; i < n; ++i) column[i] = narrow[i][j];
      }
    }
    return;
  }
  for (int i = n * dim; i < kRun * dim; i += kW) store(turned + i, zero());
  for (int d = 0; d < dim; d += kW) {
    for (int i = 0; i < n; i += kW) {
      F block[kW];
      for (int j = 0; j < kW; ++j) block[j] = load(turned + (i + j) * dim + d);
      transpose(block);
      const int upto = n - i < kW ? n - i : kW;
      for (int j = 0; j < kW; ++j) {
        T* column = k + static_cast<std::int64_t>(d + j) * a.page_size + i;
        if (upto == kW) {
          store(column, block[j]);
        } else {
          T narrow[kW];
          store(narrow, block[j]);
          memcpy(column, narrow, upto * sizeof(T));
        }
      }
    }
  }
}

// cos and sin of the angles of n tokens, [n][half], for the offsets that `where` holds.
inline void append_angles(const AppendArgs& a, std::int64_t begin, int n, float* cosine,
                          float* sine) {
  const int half = a.rope.half, fields = 2 + a.rope.axes;
  for (int i = 0; i < n; ++i) {
    const std::int64_t* at = a.where + (begin + i) * fields + 2;
    const std::int64_t offset[3] = {at[0], fields > 3 ? at[1] : 0, fields > 3 ? at[2] : 0};
    angles(offset, a.rope, cosine + i * half, sine + i * half);
  }
}

// All heads of up to kRun tokens in consecutive slots of a page.
template <class T>
inline void append_run(const AppendArgs& a, std::int64_t begin, std::int64_t end, float* scratch) {
  const int n = static_cast<int>(end - begin), fields = 2 + a.rope.axes;
  float* row = scratch;                   // [dim]
  float* turned = row + a.dim;            // [kRun][dim]
  float* cosine = turned + kRun * a.dim;  // [kRun][half]
  float* sine = cosine + kRun * a.rope.half;
  const std::int64_t page = a.where[begin * fields], slot = a.where[begin * fields + 1];
  if (a.rope.inv_freq) append_angles(a, begin, n, cosine, sine);
  for (int head = 0; head < a.kv_heads; ++head) {
    append_head<T>(a, begin, n, page, slot, head, a.rope.inv_freq ? cosine : nullptr, sine, row,
                   turned);
  }
}

}  // namespace
