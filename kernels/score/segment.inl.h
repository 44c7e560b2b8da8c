// SPDX-License-Identifier: Apache-2.0
// What segments of rows add up to. A segment adds its rows in order to what is there, so that it
// does not matter in how many calls they come.
#pragma once
#include "csrc/simd/part.h"
#include "tile.inl.h"

namespace {

using headrace::SegmentArgs;

constexpr int kSegmentRows = 4;  // that share a load and a store of what they add to

// state = f(state, row, i) for n rows, one after another: a strip of columns stays in registers.
template <class S, class T, class Body>
inline void update(S* state, const T* const* rows, int n, std::int64_t dim, const Body& f) {
  constexpr int kN = 4;
  std::int64_t d = 0;
  for (; d + kN * kW <= dim; d += kN * kW) {
    F acc[kN];
    for (int k = 0; k < kN; ++k) acc[k] = load(state + d + k * kW);
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < kN; ++k) acc[k] = f(acc[k], load(rows[i] + d + k * kW), i);
    }
    for (int k = 0; k < kN; ++k) store(state + d + k * kW, acc[k]);
  }
  for (; d + kW <= dim; d += kW) {
    F acc = load(state + d);
    for (int i = 0; i < n; ++i) acc = f(acc, load(rows[i] + d), i);
    store(state + d, acc);
  }
  if (d == dim) return;
  const int lanes = static_cast<int>(dim - d);
  F acc = load_part(state + d, lanes);
  for (int i = 0; i < n; ++i) acc = f(acc, load_part(rows[i] + d, lanes), i);
  store_part(state + d, acc, lanes);
}

// Rows side by side are no stream to a processor.
template <class T>
inline void prefetch(const T* row, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; d += 64 / sizeof(T)) __builtin_prefetch(row + d);
}

template <class T>
inline float length_of(const T* row, std::int64_t dim) {
  F sum = zero();
  std::int64_t d = 0;
  for (; d + kW <= dim; d += kW) {
    const F x = load(row + d);
    sum = fma(x, x, sum);
  }
  if (d < dim) {
    const F x = load_part(row + d, static_cast<int>(dim - d));
    sum = fma(x, x, sum);
  }
  const float total = hsum(sum);
  return total > 0.f ? 1.f / __builtin_sqrtf(total) : 0.f;
}

// One of the two bounds, in fp32 or the dtype of the rows.
template <class T, class Body>
inline void bound(void* state, std::int64_t start, int dtype, const T* const* rows, int n,
                  std::int64_t dim, const Body& f) {
  if (!state) return;
  if (dtype == headrace::kF32) return update(static_cast<float*>(state) + start, rows, n, dim, f);
  update(static_cast<T*>(state) + start, rows, n, dim, f);
}

template <class T>
inline void segment_as(const SegmentArgs& a, std::int64_t segment, int first, int last,
                       const std::int32_t* rows, std::int64_t n) {
  const auto start = [&](const std::int64_t* strides, int head) {
    return segment * strides[0] + head * strides[1];
  };
  for (std::int64_t i = 0; i < n; i += kSegmentRows) {
    const int few = static_cast<int>(n - i < kSegmentRows ? n - i : kSegmentRows);
    for (int head = first; head < last; ++head) {
      const T* at[kSegmentRows];
      for (int k = 0; k < few; ++k) {
        at[k] = static_cast<const T*>(a.x) + rows[i + k] * a.x_strides[0] + head * a.x_strides[1];
      }
      for (std::int64_t k = i + few; k < n && k < i + 2 * kSegmentRows; ++k) {
        prefetch(static_cast<const T*>(a.x) + rows[k] * a.x_strides[0] + head * a.x_strides[1],
                 a.dim);
      }
      if (a.total) {
        update(a.total + start(a.total_strides, head), at, few, a.dim,
               [](F old, F x, int) { return add(old, x); });
      }
      bound(a.low, start(a.low_strides, head), a.low_dtype, at, few, a.dim,
            [](F old, F x, int) { return min(old, x); });
      bound(a.high, start(a.high_strides, head), a.high_dtype, at, few, a.dim,
            [](F old, F x, int) { return max(old, x); });
      if (a.unit) {
        F by[kSegmentRows];
        for (int k = 0; k < few; ++k) by[k] = set1(length_of(at[k], a.dim));
        update(a.unit + start(a.unit_strides, head), at, few, a.dim,
               [&](F old, F x, int k) { return fma(x, by[k], old); });
      }
    }
  }
}

void segment(const SegmentArgs& a, std::int64_t segment, int first, int last,
             const std::int32_t* rows, std::int64_t n) {
  by_type(a.dtype, [&](auto x) { segment_as<decltype(x)>(a, segment, first, last, rows, n); });
}

}  // namespace
