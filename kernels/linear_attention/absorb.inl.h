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

// Rows that are in registers together, and lines of the state on their way while they are.
constexpr int kFoldRows = 8, kAhead = 2 * kFoldRows;

// Asks for n rows of a state. Where few tokens pass, memory is what takes the time, and strips
// down the rows are no pattern that a processor foresees.
inline void fetch_rows(const float* state, int n, int v_dim) {
  for (int i = 0; i < n * v_dim; i += 16) __builtin_prefetch(state + i, 1);
}

// R rows of a state [dim][v_dim]: each token decays them and adds k v^T; with Q, o [n][v_dim] gains
// q times what they hold then; the state is written only with Keep. Rows from `ahead` on, if any,
// are asked for on the way.
template <int R, bool K, bool Q, bool Keep>
inline void fold_rows(const float* k, const float* v, const float* q, int n, int dim, int v_dim,
                      float decay, float* state, float* o, const float* ahead) {
  for (int j = 0; j < v_dim; j += kW) {
    if (ahead && j % 16 == 0) {
      for (int r = 0; r < R; ++r) __builtin_prefetch(ahead + r * v_dim + j, K && Keep);
    }
    F s[R];
    for (int r = 0; r < R; ++r) s[r] = load(state + r * v_dim + j);
    const F g = set1(decay);
    for (int t = 0; t < n; ++t) {
      F out = zero();
      if (Q) out = load(o + t * v_dim + j);
      F value = zero();
      if (K) value = load(v + t * v_dim + j);
      for (int r = 0; r < R; ++r) {
        if (K) s[r] = fma(set1(k[t * dim + r]), value, decay == 1.f ? s[r] : mul(g, s[r]));
        if (Q) out = fma(set1(q[t * dim + r]), s[r], out);
      }
      if (Q) store(o + t * v_dim + j, out);
    }
    if (K && Keep) {
      for (int r = 0; r < R; ++r) store(state + r * v_dim + j, s[r]);
    }
  }
}

template <bool K, bool Q, bool Keep = true>
inline void fold(const float* k, const float* v, const float* q, int n, int dim, int v_dim,
                 float decay, float* state, float* o) {
  for (int d = 0; d < dim; d += kFoldRows) {
    const float* ahead = d + kAhead < dim ? state + (d + kAhead) * v_dim : nullptr;
    fold_rows<kFoldRows, K, Q, Keep>(k + d, v, q + d, n, dim, v_dim, decay, state + d * v_dim, o,
                                     ahead);
  }
}

// The state of one head takes n keys, already in the form that the numerator wants, and values.
inline void absorb_rows(const float* k, const float* v, int n, int dim, int v_dim, float decay,
                        float* state) {
  fold<true, false>(k, v, k, n, dim, v_dim, decay, state, nullptr);
}

}  // namespace
