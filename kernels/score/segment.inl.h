// SPDX-License-Identifier: Apache-2.0
// What segments of rows add up to. A segment adds its rows in order to what is there, so that it
// does not matter in how many calls they come.
#pragma once
#include <string.h>

#include "tile.inl.h"

namespace {

using headrace::SegmentArgs;

// body(first column, values) for the columns of a row; lanes beyond the last are 0.
template <class T, class Body>
inline void each_column(const T* row, std::int64_t dim, const Body& body) {
  std::int64_t d = 0;
  for (; d + kW <= dim; d += kW) body(d, load(row + d), kW);
  if (d == dim) return;
  T rest[kW];
  memset(rest, 0, sizeof rest);
  memcpy(rest, row + d, static_cast<std::size_t>(dim - d) * sizeof(T));
  body(d, load(rest), static_cast<int>(dim - d));
}

// state[d] = f(state[d], row[d]).
template <class S, class T, class Body>
inline void update(S* state, const T* row, std::int64_t dim, const Body& f) {
  each_column(row, dim, [&](std::int64_t d, F x, int lanes) {
    if (lanes == kW) return store(state + d, f(load(state + d), x));
    S rest[kW];
    memset(rest, 0, sizeof rest);
    memcpy(rest, state + d, static_cast<std::size_t>(lanes) * sizeof(S));
    store(rest, f(load(rest), x));
    memcpy(state + d, rest, static_cast<std::size_t>(lanes) * sizeof(S));
  });
}

template <class T>
inline float length_of(const T* row, std::int64_t dim) {
  F sum = zero();
  each_column(row, dim, [&](std::int64_t, F x, int) { sum = fma(x, x, sum); });
  const float total = hsum(sum);
  return total > 0.f ? 1.f / __builtin_sqrtf(total) : 0.f;
}

template <class T>
inline void extremes(const SegmentArgs& a, std::int64_t at, const T* row, std::int64_t dim) {
  const auto least = [](F old, F x) { return min(old, x); };
  const auto most = [](F old, F x) { return max(old, x); };
  for (int which = 0; which < 2; ++which) {
    void* state = which ? a.high : a.low;
    if (!state) continue;
    const std::int64_t start =
        which ? a.high_strides[0] * (at / a.heads) + a.high_strides[1] * (at % a.heads)
              : a.low_strides[0] * (at / a.heads) + a.low_strides[1] * (at % a.heads);
    const int dtype = which ? a.high_dtype : a.low_dtype;
    const auto run = [&](auto* s) {
      which ? update(s + start, row, dim, most) : update(s + start, row, dim, least);
    };
    if (dtype == headrace::kF32) {
      run(static_cast<float*>(state));
    } else {
      run(static_cast<T*>(state));  // the dtype of the rows
    }
  }
}

template <class T>
inline void segment_as(const SegmentArgs& a, std::int64_t segment, int first, int last,
                       const std::int32_t* rows, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (int head = first; head < last; ++head) {
      const T* row = static_cast<const T*>(a.x) + rows[i] * a.x_strides[0] + head * a.x_strides[1];
      if (a.total) {
        float* total = a.total + segment * a.total_strides[0] + head * a.total_strides[1];
        update(total, row, a.dim, [](F old, F x) { return add(old, x); });
      }
      extremes(a, segment * a.heads + head, row, a.dim);
      if (a.unit) {
        float* unit = a.unit + segment * a.unit_strides[0] + head * a.unit_strides[1];
        const F by = set1(length_of(row, a.dim));
        update(unit, row, a.dim, [&](F old, F x) { return fma(x, by, old); });
      }
    }
  }
}

void segment(const SegmentArgs& a, std::int64_t segment, int first, int last,
             const std::int32_t* rows, std::int64_t n) {
  if (a.dtype == headrace::kF32) return segment_as<float>(a, segment, first, last, rows, n);
  if (a.dtype == headrace::kBF16) return segment_as<bf16>(a, segment, first, last, rows, n);
  segment_as<fp16>(a, segment, first, last, rows, n);
}

}  // namespace
