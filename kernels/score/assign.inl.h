// SPDX-License-Identifier: Apache-2.0
// The most similar of the candidates for every row; of equally similar ones the first.
#pragma once
#include <string.h>

#include "bits.inl.h"
#include "tile.inl.h"

namespace {

using headrace::AssignArgs;
using headrace::kAssignRows;

// s[j] = -|q - column j|^2: as differences, since the square of a sum would cancel.
inline void distances(const float* q, const float* columns, std::int64_t dim, float* s) {
  constexpr int kAll = kScoreTile / kW;
  F acc[kAll];
  for (int v = 0; v < kAll; ++v) acc[v] = zero();
  for (std::int64_t d = 0; d < dim; ++d) {
    const F x = set1(q[d]);
    for (int v = 0; v < kAll; ++v) {
      const F apart = sub(x, load(columns + d * kScoreTile + v * kW));
      acc[v] = fma(apart, apart, acc[v]);
    }
  }
  for (int v = 0; v < kAll; ++v) store(s + v * kW, sub(zero(), acc[v]));
}

// Whether rows stay bf16, to meet candidates two elements at a time; lengths divide cosines then.
inline bool assign_in_pairs(const AssignArgs& a) {
  return in_pairs(a.dtype, a.dim) && (a.metric == headrace::kCosine || a.metric == headrace::kDot);
}

// 1 over the lengths of the rows of a tile, behind its pairs.
inline void lengths_of_pairs(const AssignArgs& a, float* columns) {
  float* by = columns + a.dim / 2 * kScoreTile;
  for (int j = 0; j < kScoreTile; j += kW) {
    F sum = zero();
    for (std::int64_t d = 0; d < a.dim / 2; ++d) {
      const auto x = Doubles::column(columns + d * kScoreTile + j);
      sum = Doubles::add(x, x, sum);
    }
    store(by + j, sum);
  }
  for (int j = 0; j < kScoreTile; ++j) by[j] = by[j] > 0.f ? 1.f / __builtin_sqrtf(by[j]) : 0.f;
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
    if (a.metric == headrace::kCosine) lengths_of_pairs(a, columns);
    return;
  }
  to_columns(rows, n, a.dim, columns);
  if (a.metric != headrace::kCosine) return;
  for (int j = 0; j < kScoreTile; j += kW) {
    F sum = zero();
    for (std::int64_t d = 0; d < a.dim; ++d) {
      const F x = load(columns + d * kScoreTile + j);
      sum = fma(x, x, sum);
    }
    float by[kW];
    store(by, sum);
    for (float& x : by) x = x > 0.f ? 1.f / __builtin_sqrtf(x) : 0.f;
    for (std::int64_t d = 0; d < a.dim; ++d) {
      float* p = columns + d * kScoreTile + j;
      store(p, mul(load(p), load(by)));
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

void candidates(const AssignArgs& a, std::int64_t batch, std::int64_t tile) {
  float* columns = a.columns + (batch * a.tiles + tile) * a.dim * kScoreTile;
  if (a.dtype == headrace::kScoreInt) {
    return candidate_bits(a, batch, tile, reinterpret_cast<std::uint32_t*>(columns));
  }
  if (a.dtype == headrace::kF32) return candidates_as<float>(a, batch, tile, columns);
  if (a.dtype == headrace::kBF16) return candidates_as<bf16>(a, batch, tile, columns);
  candidates_as<fp16>(a, batch, tile, columns);
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
    if (a.metric != headrace::kCosine) continue;
    const float total = hsum(sum);
    by_row[i] = total > 0.f ? 1.f / __builtin_sqrtf(total) : 0.f;
    if (pairs) continue;
    const F by = set1(by_row[i]);
    for (std::int64_t d = 0; d < a.dim; d += kW) {
      store(rows + i * a.dim + d, mul(load(rows + i * a.dim + d), by));
    }
  }
}

// Similarities of n rows with a tile, s[n][kScoreTile].
inline void similarities(const AssignArgs& a, const float* rows, const float* by_row, int n,
                         const float* columns, int there, float* s) {
  if (a.metric == headrace::kHamming) {
    const std::uint32_t* words = reinterpret_cast<const std::uint32_t*>(columns);
    for (int i = 0; i < n; ++i) {
      alignas(64) std::int32_t apart[kScoreTile] = {};
      std::uint32_t fold[2 * kBitWords];
      for (std::int64_t d = 0; d < a.dim; ++d) {
        memcpy(fold + 2 * d, rows + i * a.dim + d, 4);
        fold[2 * d + 1] = 0xffffffffu;
      }
      bits_apart(a.popcount, {words, fold, kScoreTile, 2, a.dim, 1, false}, apart);
      for (int j = 0; j < kScoreTile; ++j) s[i * kScoreTile + j] = -static_cast<float>(apart[j]);
    }
  } else if (a.metric == headrace::kSquares) {
    for (int i = 0; i < n; ++i) distances(rows + i * a.dim, columns, a.dim, s + i * kScoreTile);
  } else if (assign_in_pairs(a)) {
    const std::int64_t words = a.dim / 2;
    products<Doubles>(rows, words, n, columns, there, words, false, s);
    const float* by = columns + words * kScoreTile;
    for (int i = 0; i < n && a.metric == headrace::kCosine; ++i) {
      for (int j = 0; j < kScoreTile; j += kW) {
        float* p = s + i * kScoreTile + j;
        store(p, mul(mul(load(p), set1(by_row[i])), load(by + j)));
      }
    }
  } else {
    products(rows, a.dim, n, columns, there, a.dim, false, s);
  }
}

void assign(const AssignArgs& a, std::int64_t batch, std::int64_t begin, std::int64_t end,
            float* scratch) {
  float *rows = scratch, *s = rows + kAssignRows * a.dim;
  float best[kAssignRows], by_row[kAssignRows];
  std::int32_t id[kAssignRows];
  const int n = static_cast<int>(end - begin);
  if (a.dtype == headrace::kScoreInt) {
    for (int i = 0; i < n; ++i) {
      memcpy(rows + i * a.dim,
             static_cast<const std::uint32_t*>(a.x) + batch * a.x_strides[0] +
                 (begin + i) * a.x_strides[1],
             static_cast<std::size_t>(a.dim) * 4);
    }
  } else if (a.dtype == headrace::kF32) {
    rows_as<float>(a, batch, begin, n, rows, by_row);
  } else if (a.dtype == headrace::kBF16) {
    rows_as<bf16>(a, batch, begin, n, rows, by_row);
  } else {
    rows_as<fp16>(a, batch, begin, n, rows, by_row);
  }
  for (int i = 0; i < n; ++i) {
    best[i] = -kInf;
    id[i] = -1;
  }
  std::int64_t length = a.candidates;
  if (a.lengths && a.lengths[batch * a.lengths_stride] < length) {
    length = a.lengths[batch * a.lengths_stride];
  }
  if (a.causal && end - 1 < length) length = end - 1;
  for (std::int64_t t = 0; t * kScoreTile < length; ++t) {
    const std::int64_t first = t * kScoreTile;
    const int there = static_cast<int>(length - first < kScoreTile ? length - first : kScoreTile);
    const std::int64_t shared = a.c_strides[0] == 0 ? 0 : batch;
    similarities(a, rows, by_row, n, a.columns + (shared * a.tiles + t) * a.dim * kScoreTile, there,
                 s);
    for (int i = 0; i < n; ++i) {
      std::int64_t m = there;
      if (a.causal && begin + i - first < m) m = begin + i - first;
      for (std::int64_t j = 0; j < m; ++j) {
        if (s[i * kScoreTile + j] > best[i]) {
          best[i] = s[i * kScoreTile + j];
          id[i] = static_cast<std::int32_t>(first + j);
        }
      }
    }
  }
  for (int i = 0; i < n; ++i) {
    const std::int64_t at = batch * a.rows + begin + i;
    const bool enough = id[i] >= 0 && best[i] >= a.threshold;
    a.id[at] = enough ? id[i] * a.id_step + a.id_first : -1;
    a.similarity[at] = best[i];
  }
}

}  // namespace
