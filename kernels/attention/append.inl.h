// SPDX-License-Identifier: Apache-2.0
// Writing keys and values into pages, and merging two attention states.
#pragma once
#include "tile.inl.h"

namespace {

using headrace::AppendArgs;
using headrace::MergeArgs;

// Keys of up to 16 tokens in consecutive slots: rotated about the origin of their page and stored
// as columns; values as rows.
template <class T>
inline void append_run(const AppendArgs& a, std::int64_t begin, std::int64_t end, int head,
                       float* scratch) {
  constexpr int kRun = 16;
  const int n = static_cast<int>(end - begin), dim = a.dim;
  float* row = scratch;           // [dim]
  float* turned = row + dim;      // [dim]
  float* columns = turned + dim;  // [dim][kRun]
  float* cosine = columns + dim * kRun;
  float* sine = cosine + a.half;
  const std::int64_t page = a.where[begin * 3], slot = a.where[begin * 3 + 1];
  T* k = static_cast<T*>(a.k_pages) + page * a.k_page + head * a.k_page_head + slot;
  T* v = static_cast<T*>(a.v_pages) + page * a.v_page + head * a.v_page_head + slot * dim;
  for (int i = 0; i < n; ++i) {
    const std::int64_t token = begin + i, at = token * a.k_row + head * a.k_head;
    for (int d = 0; d < dim; d += kW) store(row + d, load_any(a.k, at + d, a.dtype));
    const float* key = row;
    if (a.inv_freq) {
      angles(a.where[token * 3 + 2], a.inv_freq, a.half, cosine, sine);
      rotate(row, cosine, sine, a.half, dim, turned);
      key = turned;
    }
    for (int d = 0; d < dim; ++d) columns[d * kRun + i] = key[d];
    const std::int64_t from = token * a.v_row + head * a.v_head;
    for (int d = 0; d < dim; d += kW) store(v + i * dim + d, load_any(a.v, from + d, a.dtype));
  }
  for (int i = n; i < kRun; ++i) {
    for (int d = 0; d < dim; ++d) columns[d * kRun + i] = 0.f;
  }
  for (int d = 0; d < dim; ++d) {
    T narrow[kRun];
    for (int i = 0; i < kRun; i += kW) store(narrow + i, load(columns + d * kRun + i));
    memcpy(k + static_cast<std::int64_t>(d) * a.page_size, narrow, n * sizeof(T));
  }
}

void append(const AppendArgs& a, std::int64_t begin, std::int64_t end, int head, float* scratch) {
  if (a.page_dtype == headrace::kF32) return append_run<float>(a, begin, end, head, scratch);
  if (a.page_dtype == headrace::kBF16) return append_run<bf16>(a, begin, end, head, scratch);
  return append_run<fp16>(a, begin, end, head, scratch);
}

void merge(const MergeArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const float la = a.lse_a[r], lb = a.lse_b[r];
    const float top = la > lb ? la : lb;
    if (top == -kInf) {
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
