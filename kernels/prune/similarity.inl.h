// SPDX-License-Identifier: Apache-2.0
// Rows against rows, and by what dtypes and metric.
#pragma once
#include <string.h>

#include "patches.inl.h"

namespace {

// The best of the rows around (h, w); NaN where one of them gives NaN.
template <int M, class X, class R>
inline float around(const SimilarityArgs& a, const X* x, const R* r, std::int64_t h,
                    std::int64_t w) {
  const bool least = is_distance(a.metric);
  const std::int64_t top = h < a.radius ? 0 : h - a.radius, left = w < a.radius ? 0 : w - a.radius;
  const std::int64_t bottom = a.height - 1 - h < a.radius ? a.height - 1 : h + a.radius;
  const std::int64_t right = a.width - 1 - w < a.radius ? a.width - 1 : w + a.radius;
  float best = score_of<M>(a, x, r + top * a.ref_strides[1] + left * a.ref_strides[2]);
  for (std::int64_t y = top; y <= bottom; ++y) {
    for (std::int64_t z = left; z <= right; ++z) {
      const float s = score_of<M>(a, x, r + y * a.ref_strides[1] + z * a.ref_strides[2]);
      if (s != s || (least ? s < best : s > best)) best = s;
    }
  }
  return best;
}

// Rows at once: what follows the sums of a short row takes as long as they do.
template <int M>
constexpr int kRows = M == kCos ? 4 : 16;

template <int M, class X, class R>
inline void some_rows(const SimilarityArgs& a, const X* const* x, const R* const* r, float* out) {
  constexpr int kN = kTotals<M>, kMany = kRows<M>;
  F totals[kN][kMany];
  for (int i = 0; i < kMany; ++i) {
    F one[kN];
    lanes_of<M>(x[i], r[i], a.depth, one);
    for (int j = 0; j < kN; ++j) totals[j][i] = one[j];
  }
  float sums[kN][kMany];
  for (int j = 0; j < kN; ++j) {
    if constexpr (kMany == 16) {
      hsum16(totals[j], sums[j]);
    } else {
      hsum4(totals[j], sums[j]);
    }
  }
  if (M == kDot) {
    memcpy(out, sums[0], sizeof sums[0]);
    return;
  }
  if (a.metric == headrace::kGauss) {
    double apart[kMany];
    for (int i = 0; i < kMany; ++i) apart[i] = sums[0][i] / (2 * a.alpha);
    for (int i = 0; i < kMany; ++i) out[i] = static_cast<float>(falling(apart[i]));
    return;
  }
  for (int i = 0; i < kMany; ++i) {
    double own[kSums] = {};
    for (int j = 0; j < kN; ++j) own[j] = sums[j][i];
    out[i] = similarity_of(a, own, static_cast<double>(a.depth));
  }
}

template <int M, class X, class R>
void rows_of(const SimilarityArgs& a, std::int64_t first, std::int64_t last) {
  const X* x = static_cast<const X*>(a.x);
  const R* ref = static_cast<const R*>(a.ref);
  std::int64_t w = first % a.width, h = first / a.width % a.height, f = first / a.width / a.height;
  const X* row;
  const R* other;
  const auto place = [&] {
    row = x + f * a.x_strides[0] + h * a.x_strides[1] + w * a.x_strides[2];
    other = ref + f * a.ref_strides[0] + h * a.ref_strides[1] + w * a.ref_strides[2];
  };
  const auto further = [&] {
    row += a.x_strides[2];
    other += a.ref_strides[2];
    if (++w < a.width) return;
    w = 0;
    if (++h == a.height) {
      h = 0;
      ++f;
    }
    place();
  };
  place();
  std::int64_t t = first;
  constexpr bool kBytes = std::is_same<X, u8>::value && std::is_same<R, u8>::value && M == kL1;
  constexpr int kMany = kRows<M>;
  for (; !kBytes && !a.segments && !a.radius && t + kMany <= last; t += kMany) {
    const X* own[kMany];
    const R* others[kMany];
    for (int i = 0; i < kMany; ++i, further()) {
      own[i] = row;
      others[i] = other;
    }
    some_rows<M>(a, own, others, a.out + t);
  }
  for (; t < last; ++t, further()) {
    if (a.segments) {
      const std::int64_t s = a.segments[f * a.segment_strides[0] + h * a.segment_strides[1] +
                                        w * a.segment_strides[2]];
      constexpr float kFar = __builtin_inff();
      a.out[t] = s < 0 || s >= a.ref_rows ? (is_distance(a.metric) ? kFar : -kFar)
                                          : score_of<M>(a, row, ref + s * a.ref_strides[2]);
    } else if (a.radius) {
      a.out[t] = around<M>(a, row, ref + f * a.ref_strides[0], h, w);
    } else {
      a.out[t] = score_of<M>(a, row, other);
    }
  }
}

template <class X, class R, class Do>
void by_metric(const SimilarityArgs& a, const Do& go) {
  const X* x = nullptr;
  const R* r = nullptr;
  if (a.metric == kCos) return go.template of<kCos>(x, r);
  if (a.metric == kDot) return go.template of<kDot>(x, r);
  if (a.metric == kL1) return go.template of<kL1>(x, r);
  go.template of<kL2>(x, r);  // and what is made of it
}

template <class X, class Do>
void by_reference(const SimilarityArgs& a, const Do& go) {
  if (a.ref_dtype == headrace::kF32) return by_metric<X, float>(a, go);
  by_metric<X, X>(a, go);
}

template <class Do>
void by_dtype(const SimilarityArgs& a, const Do& go) {
  if (a.x_dtype == headrace::kF32) return by_metric<float, float>(a, go);
  if (a.x_dtype == headrace::kBF16) return by_reference<bf16>(a, go);
  if (a.x_dtype == headrace::kF16) return by_reference<fp16>(a, go);
  by_reference<u8>(a, go);
}

struct RowsOf {
  const SimilarityArgs& a;
  std::int64_t first, last;
  template <int M, class X, class R>
  void of(const X*, const R*) const {
    rows_of<M, X, R>(a, first, last);
  }
};
struct PatchesOf {
  const SimilarityArgs& a;
  std::int64_t frame, y, y_end;
  double* sums;
  template <int M, class X, class R>
  void of(const X*, const R*) const {
    patches_of<M, X, R>(a, frame, y, y_end, sums);
  }
};

void rows(const SimilarityArgs& a, std::int64_t first, std::int64_t last) {
  by_dtype(a, RowsOf{a, first, last});
}

void patches(const SimilarityArgs& a, std::int64_t frame, std::int64_t y, std::int64_t y_end,
             double* sums) {
  const bool whole = a.x_strides[2] == a.depth && a.ref_strides[2] == a.depth;
  if (whole && a.metric == kL1 && a.x_dtype == headrace::kU8 && a.ref_dtype == headrace::kU8)
    return byte_patches(a, frame, y, y_end, sums);
  by_dtype(a, PatchesOf{a, frame, y, y_end, sums});
}

}  // namespace
