// SPDX-License-Identifier: Apache-2.0
// The most similar of the candidates for every row; of equally similar ones the first.
#pragma once
#include "assign_rows.inl.h"
#include "bits.inl.h"
#include "csrc/simd/lanes.h"

namespace {

// -|x - c|^2: as differences, since the square of a sum would cancel.
template <class T>
inline float less_distance(const T* x, const T* c, std::int64_t dim) {
  F sum[2] = {zero(), zero()};
  for (std::int64_t d = 0; d < dim; d += kW) {
    const F apart = sub(load(x + d), load(c + d));
    F& to = sum[d / kW % 2];
    to = fma(apart, apart, to);
  }
  return 0.f - hsum(add(sum[0], sum[1]));
}

// Similarities of n rows with a tile, s[n][kScoreTile].
inline void similarities(const AssignArgs& a, const float* rows, const float* by_row, int n,
                         const float* columns, int there, float* s) {
  if (kBits && a.metric == headrace::kHamming) {
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

// The best so far of a row: the first of equals.
struct Best {
  float similarity = -kInf;
  std::int64_t id = -1;
};

// The first of the largest of s[m], if that is more.
inline void better_of(const float* s, std::int64_t first, std::int64_t m, Best* best) {
  F most = set1(-kInf);
  for (std::int64_t j = 0; j < m; j += kW) {
    most = max(keep(load(s + j), set1(-kInf), 0, static_cast<int>(m - j)), most);  // NaN is none
  }
  const float top = largest(most);
  if (!(top > best->similarity)) return;
  best->similarity = top;
  for (std::int64_t j = 0; j < m; j += kW) {
    const unsigned there = reached(load(s + j), set1(top)) & first_of(m - j);
    if (!there) continue;
    best->id = first + j + __builtin_ctz(there);
    return;
  }
}

// The same by distances, which are found for candidates that a bound does not rule out.
template <class T>
inline void nearer_of(const AssignArgs& a, const T* x, const T* c, float* s, float by_row,
                      const float* by, std::int64_t first, std::int64_t m, Best* best) {
  unsigned some = 0;
  F most = set1(-kInf);
  const F less = set1(by_row), two = set1(2.f), finite = set1(-kInf);
  for (std::int64_t j = 0; j < m; j += kW) {
    const F bound = sub(sub(mul(two, load(s + j)), load(by + j)), less);
    store(s + j, bound);
    most = max(keep(bound, set1(-kInf), 0, static_cast<int>(m - j)), most);
    const unsigned out = above(set1(best->similarity), bound) & above(bound, finite);
    some |= ~out & first_of(m - j);
  }
  if (!some) return;
  const auto look = [&](std::int64_t j) {
    const float similarity = less_distance(x, c + (first + j) * a.c_strides[1], a.dim);
    const bool before = similarity == best->similarity && first + j < best->id;
    if (similarity > best->similarity || before) *best = {similarity, first + j};
  };
  const float top = largest(most);
  for (std::int64_t j = 0; j < m && top > best->similarity; j += kW) {
    const unsigned there = reached(load(s + j), set1(top)) & first_of(m - j);
    if (!there) continue;
    look(j + __builtin_ctz(there));  // the likeliest: it rules out most others
    break;
  }
  for (std::int64_t j = 0; j < m; j += kW) {
    const F bound = load(s + j);
    unsigned left = ~(above(set1(best->similarity), bound) & above(bound, finite));
    for (left &= first_of(m - j); left; left &= left - 1) {
      const std::int64_t i = j + __builtin_ctz(left);
      if (first + i != best->id && !(s[i] < best->similarity && s[i] > -kInf)) look(i);
    }
  }
}

template <class T>
inline void nearer_in(const AssignArgs& a, std::int64_t batch, std::int64_t row, float* s,
                      float by_row, const float* by, std::int64_t first, std::int64_t m,
                      Best* best) {
  const T* x = static_cast<const T*>(a.x) + batch * a.x_strides[0] + row * a.x_strides[1];
  const T* c = static_cast<const T*>(a.c) + batch * a.c_strides[0];
  if (by) return nearer_of(a, x, c, s, by_row, by, first, m, best);
  for (std::int64_t j = first; j < first + m; ++j) {
    const float similarity = less_distance(x, c + j * a.c_strides[1], a.dim);
    if (similarity > best->similarity) *best = {similarity, j};
  }
}

inline void nearer(const AssignArgs& a, std::int64_t batch, std::int64_t row, float* s,
                   float by_row, const float* by, std::int64_t first, std::int64_t m, Best* best) {
  if (m <= 0) return;
  by_type(a.dtype,
          [&](auto x) { nearer_in<decltype(x)>(a, batch, row, s, by_row, by, first, m, best); });
}

void assign(const AssignArgs& a, std::int64_t batch, std::int64_t begin, std::int64_t end,
            float* scratch) {
  float *rows = scratch, *s = rows + kAssignRows * a.dim, *own_tile = s + kAssignRows * kScoreTile;
  float by_row[kAssignRows];
  Best best[kAssignRows];
  const int n = static_cast<int>(end - begin);
  const bool in_place = headrace::assign_in_place(a), squares = a.metric == headrace::kSquares;
  if (!in_place) take_rows(a, batch, begin, n, rows, by_row);
  std::int64_t length = a.candidates;
  if (a.lengths && a.lengths[batch * a.lengths_stride] < length) {
    length = a.lengths[batch * a.lengths_stride];
  }
  if (a.causal && end - 1 < length) length = end - 1;
  const std::int64_t set = a.c_strides[0] == 0 ? 0 : batch, tile = headrace::assign_tile(a.dim);
  const std::int64_t words = assign_in_pairs(a) ? a.dim / 2 : a.dim;
  for (std::int64_t t = 0; t * kScoreTile < length; ++t) {
    const std::int64_t first = t * kScoreTile;
    const int there = static_cast<int>(length - first < kScoreTile ? length - first : kScoreTile);
    const float* columns = in_place    ? nullptr
                           : a.columns ? a.columns + (set * a.tiles + t) * tile
                                       : own_tile;
    if (columns == own_tile) take_candidates(a, set, t, own_tile);
    if (!in_place) similarities(a, rows, by_row, n, columns, there, s);
    for (int i = 0; i < n; ++i) {
      std::int64_t m = there;
      if (a.causal && begin + i - first < m) m = begin + i - first;
      float* own = s + i * kScoreTile;
      if (!squares) {
        better_of(own, first, m, best + i);
        continue;
      }
      const float* by = in_place ? nullptr : columns + words * kScoreTile;
      nearer(a, batch, begin + i, own, by_row[i], by, first, m, best + i);
    }
  }
  for (int i = 0; i < n; ++i) {
    const std::int64_t at = batch * a.rows + begin + i;
    const bool enough = best[i].id >= 0 && best[i].similarity >= a.threshold;
    a.id[at] = enough ? static_cast<std::int32_t>(best[i].id) * a.id_step + a.id_first : -1;
    a.similarity[at] = best[i].similarity;
  }
}

}  // namespace
