// SPDX-License-Identifier: Apache-2.0
// Folding keys and values into a linear-attention state, for any kernel that has them at hand: rows
// of floats, dims multiples of the vector's width. An element of the state adds its tokens one
// after the other, so its bits do not know how many came at once.
#pragma once
#include <math.h>

#include "args.h"
#include "csrc/simd/vec.h"

namespace {

// phi of a row; `to` may be `x`.
inline void feature_row(const float* x, int dim, int feature, float* to) {
  for (int d = 0; d < dim; d += kW) {
    F a = load(x + d);
    if (feature == headrace::kRelu) a = max(zero(), a);
    if (feature == headrace::kElu1) {
      // x + 1 above zero and e^x below: exactly one of the two terms differs from its neutral.
      a = add(max(zero(), a), exp2(mul(min(zero(), a), set1(1.44269504f))));
    }
    store(to + d, a);
  }
}

// Turns dimension i with i + half by the angle of c and s, or back with sign -1; not in place.
inline void turn_row(const float* x, const float* c, const float* s, float sign, int half, int dim,
                     float* to) {
  for (int i = 0; i < half; ++i) {
    to[i] = x[i] * c[i] - sign * x[i + half] * s[i];
    to[i + half] = x[i + half] * c[i] + sign * x[i] * s[i];
  }
  for (int i = 2 * half; i < dim; ++i) to[i] = x[i];
}

// norm = decay norm + phi, token after token.
inline void absorb_norm(const float* phi, int n, int dim, float decay, float* norm) {
  for (int d = 0; d < dim; d += kW) {
    F sum = load(norm + d);
    for (int t = 0; t < n; ++t) sum = fma(set1(decay), sum, load(phi + t * dim + d));
    store(norm + d, sum);
  }
}

// Rows and vectors of columns of a state that are in registers together.
constexpr int kFoldRows = F::registers >= 32 ? 8 : 4, kFoldCols = 2;
// Rows that are asked for before their turn comes.
constexpr int kAhead = 16;

// Asks for n rows of a state. Where few tokens pass, memory is what takes the time, and strips
// down the rows are no pattern that a processor foresees.
inline void fetch_rows(const float* state, int n, int v_dim) {
  for (int i = 0; i < n * v_dim; i += 16) __builtin_prefetch(state + i, 1);
}

// Lines that are asked for while a state streams by: one for each of its rows, from `at`; none
// where that is null.
struct Fetch {
  const char* at = nullptr;
  std::int64_t step = 0;
  void row(int d) const {
    if (at) __builtin_prefetch(at + d * step, 1, 2);
  }
};

// kFoldRows rows and C vectors of columns of a state with rows of v_dim: each token decays them and
// adds k v^T; with Q, o [n][v_dim] gains q times what they hold then; the state is written only
// with Keep.
template <int C, bool K, bool Q, bool Keep>
inline void fold_tile(const float* k, const float* v, const float* q, int n, int dim, int v_dim,
                      float decay, float* state, float* o) {
  F s[kFoldRows][C];
  for (int r = 0; r < kFoldRows; ++r) {
    for (int c = 0; c < C; ++c) s[r][c] = load(state + r * v_dim + c * kW);
  }
  const F g = set1(decay);
  for (int t = 0; t < n; ++t) {
    F value[C], out[C];
    for (int c = 0; c < C; ++c) {
      if (K) value[c] = load(v + t * v_dim + c * kW);
      if (Q) out[c] = load(o + t * v_dim + c * kW);
    }
    for (int r = 0; r < kFoldRows; ++r) {
      const F key = K ? set1(k[t * dim + r]) : zero(), ask = Q ? set1(q[t * dim + r]) : zero();
      for (int c = 0; c < C; ++c) {
        if (K) s[r][c] = fma(key, value[c], decay == 1.f ? s[r][c] : mul(g, s[r][c]));
        if (Q) out[c] = fma(ask, s[r][c], out[c]);
      }
    }
    for (int c = 0; Q && c < C; ++c) store(o + t * v_dim + c * kW, out[c]);
  }
  if (K && Keep) {
    for (int r = 0; r < kFoldRows; ++r) {
      for (int c = 0; c < C; ++c) store(state + r * v_dim + c * kW, s[r][c]);
    }
  }
}

// One token and C vectors of columns, row after row: as memory likes it, and there is nothing else
// to wait for. An element sees the same steps as in fold_tile.
template <int C, bool K, bool Q, bool Keep, class Ask>
inline void fold_one(const float* k, const float* v, const float* q, int dim, int v_dim,
                     float decay, float* state, float* o, Ask fetch) {
  F value[C], out[C];
  for (int c = 0; c < C; ++c) {
    if (K) value[c] = load(v + c * kW);
    if (Q) out[c] = load(o + c * kW);
  }
  const F g = set1(decay);
  for (int d = 0; d < dim; ++d) {
    float* row = state + d * v_dim;
    fetch.row(d);
    const F key = K ? set1(k[d]) : zero(), ask = Q ? set1(q[d]) : zero();
    for (int c = 0; c < C; ++c) {
      F s = load(row + c * kW);
      if (K) s = fma(key, value[c], decay == 1.f ? s : mul(g, s));
      if (K && Keep) store(row + c * kW, s);
      if (Q) out[c] = fma(ask, s, out[c]);
    }
  }
  for (int c = 0; Q && c < C; ++c) store(o + c * kW, out[c]);
}

// fetch: Fetch, or what else has a method `row`.
template <bool K, bool Q, bool Keep = true, class Ask = Fetch>
inline void fold(const float* k, const float* v, const float* q, int n, int dim, int v_dim,
                 float decay, float* state, float* o, Ask fetch = {}) {
  if (n == 1) {
    constexpr int kWide = F::registers >= 32 ? 8 : 4;
    int j = 0;
    for (; j + kWide * kW <= v_dim; j += kWide * kW) {
      fold_one<kWide, K, Q, Keep>(k, v + j, q, dim, v_dim, decay, state + j, o + j,
                                  j ? Ask{} : fetch);
    }
    for (; j < v_dim; j += kW) {
      fold_one<1, K, Q, Keep>(k, v + j, q, dim, v_dim, decay, state + j, o + j, j ? Ask{} : fetch);
    }
    return;
  }
  for (int d = 0; d < dim; d += kFoldRows) {
    float* rows = state + d * v_dim;
    for (int r = 0; r < kFoldRows; ++r) fetch.row(d + r);
    const bool more = d + kAhead + kFoldRows <= dim;
    int j = 0;
    for (; j + kFoldCols * kW <= v_dim; j += kFoldCols * kW) {
      if (more) {
        const float* ahead = rows + kAhead * v_dim + j;
        for (int r = 0; r < kFoldRows; ++r) {
          for (int c = 0; c < kFoldCols * kW; c += 16) __builtin_prefetch(ahead + r * v_dim + c, 1);
        }
      }
      fold_tile<kFoldCols, K, Q, Keep>(k + d, v + j, q + d, n, dim, v_dim, decay, rows + j, o + j);
    }
    for (; j < v_dim; j += kW) {
      fold_tile<1, K, Q, Keep>(k + d, v + j, q + d, n, dim, v_dim, decay, rows + j, o + j);
    }
  }
}

// The state of one head takes n keys, already in the form that the numerator wants, and values.
inline void absorb_rows(const float* k, const float* v, int n, int dim, int v_dim, float decay,
                        float* state, Fetch fetch = {}) {
  fold<true, false>(k, v, k, n, dim, v_dim, decay, state, state, fetch);  // no q, no o
}

}  // namespace
