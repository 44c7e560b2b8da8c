// SPDX-License-Identifier: Apache-2.0
// Rank rows of floats times what a token multiplies them by, added to its columns.
#pragma once
#include <string.h>

#include "codes.inl.h"

namespace {

// What N rank rows are multiplied by.
template <int N, class P>
struct Coefficients {
  explicit Coefficients(const float* c) {
    for (int r = 0; r < N; ++r) of[r] = set1(c[r]);
  }
  // into[Wide vectors] += the columns at `at`
  template <int Wide>
  void add(const P* const* rows, std::int64_t at, float* into) const {
    F sums[Wide];
    for (int j = 0; j < Wide; ++j) sums[j] = load(into + j * kW);
    for (int r = 0; r < N; ++r) {
      for (int j = 0; j < Wide; ++j) sums[j] = fma(of[r], load(rows[r] + at + j * kW), sums[j]);
    }
    for (int j = 0; j < Wide; ++j) store(into + j * kW, sums[j]);
  }
  F of[N];
};
#ifdef HEADRACE_DOTS
template <int N>
struct Coefficients<N, paired> {
  explicit Coefficients(const float* c) {
    float all[kW] = {};
    memcpy(all, c, sizeof(float) * N);
    bf16 terms[2][kW];
    split(load(all), terms[0], terms[1]);
    for (int p = 0; p < kPairs; ++p) {
      for (int t = 0; t < 2; ++t) of[p][t] = set1_pair(terms[t] + 2 * p);
    }
  }
  template <int Wide>
  void add(const paired* const* rows, std::int64_t at, float* into) const {
    F sums[Wide];  // woven where Wide is 2, see pair_rows
    for (int j = 0; j < Wide; ++j) sums[j] = load(into + j * kW);
    for (int p = 0; p < kPairs; ++p) {
      Pairs w[Wide];
      if constexpr (N > 1) {
        pair_rows<Wide>(rows[2 * p] + at, rows[2 * p + 1] + at, w);
      } else {
        pair_row<Wide>(rows[0] + at, w);
      }
      for (int t = 0; t < 2; ++t) {
        for (int j = 0; j < Wide; ++j) sums[j] = dot(of[p][t], w[j], sums[j]);
      }
    }
    for (int j = 0; j < Wide; ++j) store(into + j * kW, sums[j]);
  }
  static constexpr int kPairs = (N + 1) / 2;
  Pairs of[kPairs][2];
};
#endif

}  // namespace
