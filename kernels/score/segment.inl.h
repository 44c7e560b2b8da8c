// SPDX-License-Identifier: Apache-2.0
// What segments of rows add up to. A segment adds its rows in order to what is there, so that it
// does not matter in how many calls they come.
#pragma once
#include <type_traits>

#include "csrc/simd/part.h"
#include "tile.inl.h"

namespace {

using headrace::SegmentArgs;

constexpr int kSegmentRows = 8;  // that share a load and a store of what they add to

// Each of K states = f(which, state, row, i) for n rows, one after another: strips of columns stay
// in registers.
template <int K, class S, class T, class Body>
inline void update(S* const (&states)[K], const T* const* rows, int n, std::int64_t dim,
                   const Body& f) {
  constexpr int kN = 4;
  std::int64_t d = 0;
  for (; d + kN * kW <= dim; d += kN * kW) {
    F acc[K][kN];
    for (int s = 0; s < K; ++s) {
      for (int k = 0; k < kN; ++k) acc[s][k] = load(states[s] + d + k * kW);
    }
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < kN; ++k) {
        const F x = load(rows[i] + d + k * kW);
        for (int s = 0; s < K; ++s) acc[s][k] = f(s, acc[s][k], x, i);
      }
    }
    for (int s = 0; s < K; ++s) {
      for (int k = 0; k < kN; ++k) store(states[s] + d + k * kW, acc[s][k]);
    }
  }
  for (; d < dim; d += kW) {
    const int lanes = dim - d < kW ? static_cast<int>(dim - d) : kW;
    for (int s = 0; s < K; ++s) {
      F acc = load_part(states[s] + d, lanes);
      for (int i = 0; i < n; ++i) acc = f(s, acc, load_part(rows[i] + d, lanes), i);
      store_part(states[s] + d, acc, lanes);
    }
  }
}

// Rows side by side are no stream to a processor.
template <class T>
inline void prefetch(const T* row, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; d += 64 / sizeof(T)) __builtin_prefetch(row + d, 0, 2);
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

// The bounds that there are, in fp32 or the dtype of the rows.
template <class S, class T>
inline void bounds(S* low, S* high, const T* const* rows, int n, std::int64_t dim) {
  const auto least = [](int, F old, F x, int) { return min(old, x); };
  const auto most = [](int, F old, F x, int) { return max(old, x); };
  if (low && high) {
    update<2, S>({low, high}, rows, n, dim, [&](int s, F old, F x, int i) {
      return s == 0 ? least(s, old, x, i) : most(s, old, x, i);
    });
  } else if (low) {
    update<1, S>({low}, rows, n, dim, least);
  } else if (high) {
    update<1, S>({high}, rows, n, dim, most);
  }
}

template <class T>
inline void segment_as(const SegmentArgs& a, std::int64_t segment, int first, int last,
                       const std::int32_t* rows, std::int64_t n) {
  const auto start = [&](const std::int64_t* strides, int head) {
    return segment * strides[0] + head * strides[1];
  };
  const auto row = [&](std::int64_t i, int head) {
    return static_cast<const T*>(a.x) + rows[i] * a.x_strides[0] + head * a.x_strides[1];
  };
  const auto bound = [&](void* state, int dtype, const std::int64_t* strides, int head, auto* as) {
    using S = std::remove_pointer_t<decltype(as)>;
    const bool so = (dtype == headrace::kF32) == std::is_same_v<S, float>;
    return state && so ? static_cast<S*>(state) + start(strides, head) : nullptr;
  };
  for (std::int64_t i = 0; i < n; i += kSegmentRows) {
    const int few = static_cast<int>(n - i < kSegmentRows ? n - i : kSegmentRows);
    const std::int64_t next = i + few;
    const std::int64_t later = n - next < kSegmentRows ? n : next + kSegmentRows;
    for (int head = first; head < last; ++head) {
      const T* at[kSegmentRows];
      for (int k = 0; k < few; ++k) at[k] = row(i + k, head);
      for (std::int64_t k = next; k < later; ++k) prefetch(row(k, head), a.dim);
      if (a.total) {
        update<1, float>({a.total + start(a.total_strides, head)}, at, few, a.dim,
                         [](int, F old, F x, int) { return add(old, x); });
      }
      const auto add_bounds = [&](auto* as) {
        bounds(bound(a.low, a.low_dtype, a.low_strides, head, as),
               bound(a.high, a.high_dtype, a.high_strides, head, as), at, few, a.dim);
      };
      add_bounds(static_cast<float*>(nullptr));
      if (!std::is_same_v<T, float>) add_bounds(static_cast<T*>(nullptr));
      if (a.unit) {
        F by[kSegmentRows];
        for (int k = 0; k < few; ++k) by[k] = set1(length_of(at[k], a.dim));
        update<1, float>({a.unit + start(a.unit_strides, head)}, at, few, a.dim,
                         [&](int, F old, F x, int k) { return fma(x, by[k], old); });
      }
    }
  }
}

void segment(const SegmentArgs& a, std::int64_t segment, int first, int last,
             const std::int32_t* rows, std::int64_t n) {
  by_type(a.dtype, [&](auto x) { segment_as<decltype(x)>(a, segment, first, last, rows, n); });
}

}  // namespace
