// SPDX-License-Identifier: Apache-2.0
// Writing keys and values into pages, and merging two attention states.
#pragma once
#include "tile.inl.h"

namespace {

using headrace::AppendArgs;
using headrace::kRun;
using headrace::MergeArgs;

// The largest code of a quantised format; 0 for floats.
template <class T>
constexpr float kLargest = 0.f;
template <>
constexpr float kLargest<std::int8_t> = 127.f;
template <>
constexpr float kLargest<e4m3> = 448.f;

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

// Keys of up to kRun tokens in consecutive slots of a page, all heads: rotated about the origin of
// the page and stored as columns; values as rows.
template <class T>
inline void append_run(const AppendArgs& a, std::int64_t begin, std::int64_t end, float* scratch) {
  const int n = static_cast<int>(end - begin), dim = a.dim;
  float* row = scratch;                 // [dim]
  float* turned = row + dim;            // [kRun][dim]
  float* cosine = turned + kRun * dim;  // [kRun][half]
  const int half = a.rope.half, fields = 2 + a.rope.axes;
  float* sine = cosine + kRun * half;
  const std::int64_t page = a.where[begin * fields], slot = a.where[begin * fields + 1];
  if (a.rope.inv_freq) {
    for (int i = 0; i < n; ++i) {
      const std::int64_t* at = a.where + (begin + i) * fields + 2;
      const std::int64_t offset[3] = {at[0], fields > 3 ? at[1] : 0, fields > 3 ? at[2] : 0};
      angles(offset, a.rope, cosine + i * half, sine + i * half);
    }
  }
  for (int i = n * dim; i < kRun * dim; i += kW) store(turned + i, zero());
  for (int head = 0; head < a.kv_heads; ++head) {
    T* k = static_cast<T*>(a.k_pages) + page * a.k_page + head * a.k_page_head + slot;
    T* v = static_cast<T*>(a.v_pages) + page * a.v_page + head * a.v_page_head + slot * dim;
    for (int i = 0; i < n; ++i) {
      const std::int64_t at = (begin + i) * a.k_row + head * a.k_head;
      float* to = a.rope.inv_freq ? row : turned + i * dim;
      for (int d = 0; d < dim; d += kW) store(to + d, load_any(a.k, at + d, a.dtype));
      if (a.rope.inv_freq) {
        rotate(row, cosine + i * half, sine + i * half, half, dim, turned + i * dim);
      }
      to_codes<T>(turned + i * dim, dim, a.k_scale, page, head, slot + i);
      const std::int64_t from = (begin + i) * a.v_row + head * a.v_head;
      for (int d = 0; d < dim; d += kW) store(row + d, load_any(a.v, from + d, a.dtype));
      to_codes<T>(row, dim, a.v_scale, page, head, slot + i);
      for (int d = 0; d < dim; d += kW) store(v + i * dim + d, load(row + d));
    }
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
}

void append(const AppendArgs& a, std::int64_t begin, std::int64_t end, float* scratch) {
  if (a.page_dtype == headrace::kF32) return append_run<float>(a, begin, end, scratch);
  if (a.page_dtype == headrace::kBF16) return append_run<bf16>(a, begin, end, scratch);
  if (a.page_dtype == headrace::kI8) return append_run<std::int8_t>(a, begin, end, scratch);
  if (a.page_dtype == headrace::kE4M3) return append_run<e4m3>(a, begin, end, scratch);
  return append_run<fp16>(a, begin, end, scratch);
}

void merge(const MergeArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const float la = a.lse_a[r], lb = a.lse_b[r];
    const float top = la > lb ? la : lb;
    if (la == -kInf && lb == -kInf) {
      for (int d = 0; d < a.dim; d += kW) store_any(a.o, r * a.dim + d, a.dtype, zero());
      a.lse[r] = -kInf;
      continue;
    }
    const float wa = exp2_one((la - top) * kLog2e), wb = exp2_one((lb - top) * kLog2e);
    const float share = 1.f / (wa + wb);
    // A state of weight 0 may hold anything; it is not read into the sum.
    const bool has_a = wa > 0.f || la != la, has_b = wb > 0.f || lb != lb;
    for (int d = 0; d < a.dim; d += kW) {
      const std::int64_t at = r * a.dim + d;
      F sum = zero();
      if (has_a) sum = mul(load_any(a.o_a, at, a.dtype), set1(wa * share));
      if (has_b) sum = fma(load_any(a.o_b, at, a.dtype), set1(wb * share), sum);
      store_any(a.o, at, a.dtype, sum);
    }
    a.lse[r] = top + static_cast<float>(log(static_cast<double>(wa) + static_cast<double>(wb)));
  }
}

}  // namespace
