// SPDX-License-Identifier: Apache-2.0
// y += factor (x A^T) B for tokens that share their adapters. A dot product of the first half adds
// up kW running sums over the depth, then a fixed tree; an output of the second adds its rank rows
// one after the other. Neither order knows how many tokens, rank rows or columns run together, so a
// row has the same bits in every batch.
#pragma once
#include <string.h>

#include <type_traits>

#include "args.h"
#include "codes.inl.h"
#include "few.inl.h"
#include "finish.inl.h"
#include "many.inl.h"

namespace {

template <class P>
inline void shrink_of(const LoraArgs& a, const LoraBlock& b, int first, int last, float* scratch) {
  if (b.count < kM && (!kCodes<P> || a.a_group % kBlock == 0)) {
    return shrink_few<P>(a, b, first, last, scratch);
  }
  for (int r = first; r < last; r += headrace::kLoraPanel) {
    shrink_panel<P>(a, b, r, last - r < headrace::kLoraPanel ? last : r + headrace::kLoraPanel,
                    scratch);
  }
}

template <class P>
inline void expand_of(const LoraArgs& a, const LoraBlock& b, std::int64_t first, std::int64_t last,
                      float* scratch) {
  std::int64_t begin = 0;
  for (int slice = 0; slice < a.slices; begin = b.ends[slice++]) {
    const std::int64_t lo = first > begin ? first : begin;
    const std::int64_t hi = last < b.ends[slice] ? last : b.ends[slice];
    const int start = b.starts[slice], depth = b.starts[slice + 1] - start;
    if (b.count < kM && a.b_col == 1) {
      for (std::int64_t at = lo; at < hi; at += kStrip) {
        const int n = static_cast<int>(hi - at < kStrip ? hi - at : kStrip);
        if (expand_strip<P>(a, b, slice, at, n, hi, scratch)) continue;
        finish(a, b, 0, b.count, at, n, scratch, kStrip);
      }
      continue;
    }
    expand_many<P>(a, b, start, depth, lo, hi, scratch);
  }
}

void shrink(const LoraArgs& a, const LoraBlock& b, int first, int last, float* scratch) {
  switch (a.pool_dtype) {
    case headrace::kPoolF32:
      return shrink_of<float>(a, b, first, last, scratch);
    case headrace::kPoolBF16:
#ifdef HEADRACE_DOTS
      if (a.x_dtype == headrace::kBF16) return shrink_of<paired>(a, b, first, last, scratch);
#endif
      return shrink_of<bf16>(a, b, first, last, scratch);
    case headrace::kPoolF16:
      return shrink_of<fp16>(a, b, first, last, scratch);
    case headrace::kPoolI8:
      return shrink_of<i8>(a, b, first, last, scratch);
    default:
      return shrink_of<i4>(a, b, first, last, scratch);
  }
}

void expand(const LoraArgs& a, const LoraBlock& b, std::int64_t first, std::int64_t last,
            float* scratch) {
  switch (a.pool_dtype) {
    case headrace::kPoolF32:
      return expand_of<float>(a, b, first, last, scratch);
    case headrace::kPoolBF16:
#ifdef HEADRACE_DOTS
      if (a.x_dtype == headrace::kBF16) return expand_of<paired>(a, b, first, last, scratch);
#endif
      return expand_of<bf16>(a, b, first, last, scratch);
    case headrace::kPoolF16:
      return expand_of<fp16>(a, b, first, last, scratch);
    case headrace::kPoolI8:
      return expand_of<i8>(a, b, first, last, scratch);
    default:
      return expand_of<i4>(a, b, first, last, scratch);
  }
}

}  // namespace

extern "C" const headrace::LoraKernels HEADRACE_JOIN(headrace_lora_, HEADRACE_LEVEL) = {shrink,
                                                                                        expand};
