// SPDX-License-Identifier: Apache-2.0
// Writing keys and values into pages, and merging two attention states.
#pragma once
#include "tile.inl.h"

namespace {

using headrace::AppendArgs;
using headrace::kRun;
using headrace::MergeArgs;

// Keys of up to kRun tokens in consecutive slots of a page, all heads: rotated about the origin of
// the page and stored as columns; values as rows.
template <class T>
inline void append_run(const AppendArgs& a, std::int64_t begin, std::int64_t end, float* scratch) {
  const int n = static_cast<int>(end - begin), dim = a.dim;
  float* row = scratch;                 // [dim]
  float* turned = row + dim;            // [kRun][dim]
  float* cosine = turned + kRun * dim;  // [kRun][half]
  float* sine = cosine + kRun * a.half;
  const std::int64_t page = a.where[begin * 3], slot = a.where[begin * 3 + 1];
  if (a.inv_freq) {
    for (int i = 0; i < n; ++i) {
      angles(a.where[(begin + i) * 3 + 2], a.inv_freq, a.half, cosine + i * a.half,
             sine + i * a.half);
    }
  }
  for (int i = n * dim; i < kRun * dim; i += kW) store(turned + i, zero());
  for (int head = 0; head < a.kv_heads; ++head) {
    T* k = static_cast<T*>(a.k_pages) + page * a.k_page + head * a.k_page_head + slot;
    T* v = static_cast<T*>(a.v_pages) + page * a.v_page + head * a.v_page_head + slot * dim;
    for (int i = 0; i < n; ++i) {
      const std::int64_t at = (begin + i) * a.k_row + head * a.k_head;
      float* to = a.inv_freq ? row : turned + i * dim;
      for (int d = 0; d < dim; d += kW) store(to + d, load_any(a.k, at + d, a.dtype));
      if (a.inv_freq) {
        rotate(row, cosine + i * a.half, sine + i * a.half, a.half, dim, turned + i * dim);
      }
      const std::int64_t from = (begin + i) * a.v_row + head * a.v_head;
      for (int d = 0; d < dim; d += kW) store(v + i * dim + d, load_any(a.v, from + d, a.dtype));
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
