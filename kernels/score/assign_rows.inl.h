// SPDX-License-Identifier: Apache-2.0
// What rows and candidates become before they meet: columns, lengths, bits.
#pragma once
#include <string.h>

#include "tile.inl.h"

namespace {

using headrace::AssignArgs;
using headrace::kAssignRows;

// By so much, in parts of |x|^2 + |c|^2, may 2 x.c - |x|^2 - |c|^2 and the distance as differences
// be apart: sums of dim products in fp32, and what few roundings follow.
inline float slack(std::int64_t dim) { return static_cast<float>(2 * dim + 64) * 0x1p-23f; }

// Whether rows stay bf16, to meet candidates two elements at a time; lengths divide cosines then.
inline bool assign_in_pairs(const AssignArgs& a) {
  return in_pairs(a.dtype, a.dim) && a.metric != headrace::kHamming;
}

// Behind the columns of a tile 1 over their lengths, or what their squares take from a bound.
template <class Of>
inline void numbers_of(const AssignArgs& a, float* columns, std::int64_t words) {
  float* by = columns + words * kScoreTile;
  for (int j = 0; j < kScoreTile; j += kW) {
    F sum = zero();
    for (std::int64_t d = 0; d < words; ++d) {
      const auto x = Of::column(columns + d * kScoreTile + j);
      sum = Of::add(x, x, sum);
    }
    store(by + j, sum);
  }
  const float part = 1.f - slack(a.dim);
  for (int j = 0; j < kScoreTile; ++j) {
    by[j] = a.metric == headrace::kSquares ? part * by[j]
            : by[j] > 0.f                  ? 1.f / __builtin_sqrtf(by[j])
                                           : 0.f;
  }
}

// Candidates [begin, begin + n) of a batch entry as columns; of length 1 for cosines.
template <class T>
inline void candidates_as(const AssignArgs& a, std::int64_t batch, std::int64_t tile,
                          float* columns) {
  const std::int64_t begin = tile * kScoreTile, left = a.candidates - begin;
  const int n = static_cast<int>(left < kScoreTile ? left : kScoreTile);
  const T* rows[kScoreTile];
  for (int j = 0; j < kScoreTile; ++j) {
    rows[j] = static_cast<const T*>(a.c) + batch * a.c_strides[0] +
              (begin + (j < n ? j : 0)) * a.c_strides[1];
  }
  if (assign_in_pairs(a)) {
    to_pairs(rows, n, a.dim, columns);
    if (a.metric != headrace::kDot) numbers_of<Doubles>(a, columns, a.dim / 2);
    return;
  }
  to_columns(rows, n, a.dim, columns);
  if (a.metric != headrace::kDot) numbers_of<Singles>(a, columns, a.dim);
  if (a.metric != headrace::kCosine) return;
  for (int j = 0; j < kScoreTile; j += kW) {
    const F by = load(columns + a.dim * kScoreTile + j);
    for (std::int64_t d = 0; d < a.dim; ++d) {
      float* p = columns + d * kScoreTile + j;
      store(p, mul(load(p), by));
    }
  }
}

inline void candidate_bits(const AssignArgs& a, std::int64_t batch, std::int64_t tile,
                           std::uint32_t* words) {
  for (std::int64_t d = 0; d < a.dim; ++d) {
    for (int j = 0; j < kScoreTile; ++j) {
      const std::int64_t i = tile * kScoreTile + j;
      words[d * kScoreTile + j] = i < a.candidates
                                      ? static_cast<const std::uint32_t*>(
                                            a.c)[batch * a.c_strides[0] + i * a.c_strides[1] + d]
                                      : 0;
    }
  }
}

inline void take_candidates(const AssignArgs& a, std::int64_t batch, std::int64_t tile,
                            float* columns) {
  if (kBits && a.dtype == headrace::kScoreInt) {
    return candidate_bits(a, batch, tile, reinterpret_cast<std::uint32_t*>(columns));
  }
  by_type(a.dtype, [&](auto x) { candidates_as<decltype(x)>(a, batch, tile, columns); });
}

void candidates(const AssignArgs& a, std::int64_t batch, std::int64_t tile) {
  take_candidates(a, batch, tile,
                  a.columns + (batch * a.tiles + tile) * headrace::assign_tile(a.dim));
}

template <class T>
inline void rows_as(const AssignArgs& a, std::int64_t batch, std::int64_t begin, int n, float* rows,
                    float* by_row) {
  for (int i = 0; i < n; ++i) {
    const T* x = static_cast<const T*>(a.x) + batch * a.x_strides[0] + (begin + i) * a.x_strides[1];
    F sum = zero();
    for (std::int64_t d = 0; d < a.dim; d += kW) {
      const F v = load(x + d);
      if (!assign_in_pairs(a)) store(rows + i * a.dim + d, v);
      sum = fma(v, v, sum);
    }
    const bool pairs = assign_in_pairs(a);
    if (pairs) {
      memcpy(rows + i * a.dim / 2, x, static_cast<std::size_t>(a.dim) * sizeof(T));
    }
    const float total = hsum(sum);
    if (a.metric == headrace::kSquares) by_row[i] = (1.f - slack(a.dim)) * total - 1e-30f;
    if (a.metric != headrace::kCosine) continue;
    by_row[i] = total > 0.f ? 1.f / __builtin_sqrtf(total) : 0.f;
    if (pairs) continue;
    const F by = set1(by_row[i]);
    for (std::int64_t d = 0; d < a.dim; d += kW) {
      store(rows + i * a.dim + d, mul(load(rows + i * a.dim + d), by));
    }
  }
}

inline void take_rows(const AssignArgs& a, std::int64_t batch, std::int64_t begin, int n,
                      float* rows, float* by_row) {
  if (!kBits || a.dtype != headrace::kScoreInt) {
    return by_type(a.dtype,
                   [&](auto x) { rows_as<decltype(x)>(a, batch, begin, n, rows, by_row); });
  }
  for (int i = 0; i < n; ++i) {
    memcpy(rows + i * a.dim,
           static_cast<const std::uint32_t*>(a.x) + batch * a.x_strides[0] +
               (begin + i) * a.x_strides[1],
           static_cast<std::size_t>(a.dim) * 4);
  }
}

}  // namespace
