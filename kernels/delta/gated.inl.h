// SPDX-License-Identifier: Apache-2.0
// The gated delta rule, token after token, a strip of state columns at a time. Columns of a state
// do not meet, so a strip stays in the first-level cache for all tokens of a stream, and one pass
// over it writes a token, reads it out and reads what the next token's key finds. The multiply-adds
// are as many as those of the chunked form (three of K x V a token), and the bits are the same
// however a stream is cut into calls.
#pragma once
#include <math.h>

#include "args.h"
#include "csrc/simd/vec.h"
#include "kernels/common/ahead.inl.h"

namespace {

using headrace::GatedDeltaRuleArgs;
using headrace::kDeltaColumns;
using headrace::kDeltaTokens;

// A row as floats, of length 1 if asked for, times `by`.
inline void widen_row(const void* from, std::int64_t at, int dim, int dtype, bool unit, float by,
                      float* to) {
  F sum = zero();
  for (int d = 0; d < dim; d += kW) {
    const F x = load_any(from, at + d, dtype);
    store(to + d, x);
    sum = fma(x, x, sum);
  }
  if (unit) by /= sqrtf(hsum(sum) + 1e-6f);
  for (int d = 0; d < dim; d += kW) store(to + d, mul(load(to + d), set1(by)));
}

// s = a s + k d^T for N vectors of columns; o = s^T q; found = s^T next. Even and odd rows add up
// apart.
template <int N>
inline void pass(float* s, int dim, float a, const float* k, const F* d, const float* q,
                 const float* next, F* o, F* found) {
  F out[2][N], key[2][N];
  for (int p = 0; p < 2; ++p) {
    for (int n = 0; n < N; ++n) out[p][n] = key[p][n] = zero();
  }
  const F decay = set1(a);
  for (int i = 0; i < dim; i += 2) {
    for (int p = 0; p < 2; ++p) {
      float* row = s + (i + p) * kDeltaColumns;
      const F ki = set1(k[i + p]), qi = set1(q[i + p]), ni = set1(next[i + p]);
      for (int n = 0; n < N; ++n) {
        const F x = fma(ki, d[n], mul(decay, load(row + n * kW)));
        store(row + n * kW, x);
        out[p][n] = fma(qi, x, out[p][n]);
        key[p][n] = fma(ni, x, key[p][n]);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    o[n] = add(out[0][n], out[1][n]);
    found[n] = add(key[0][n], key[1][n]);
  }
}

template <int N>
inline void gated_strip(const GatedDeltaRuleArgs& a, int stream, int head, int first,
                        float* scratch) {
  const int dim = a.dim, own = head / (a.v_heads / a.heads);
  float* s = scratch;                                // [dim][kDeltaColumns]
  float* keys = s + dim * kDeltaColumns;             // [kDeltaTokens + 1][dim]
  float* queries = keys + (kDeltaTokens + 1) * dim;  // [kDeltaTokens][dim]
  float* kept = a.state +
                ((static_cast<std::int64_t>(a.rows[stream]) * a.v_heads + head) * dim) * a.v_dim +
                first;
  for (int i = 0; i < dim; ++i) {
    for (int n = 0; n < N; ++n) {
      store(s + i * kDeltaColumns + n * kW, load(kept + i * a.v_dim + n * kW));
    }
  }
  const std::int64_t begin = a.indptr[stream], end = a.indptr[stream + 1];
  const auto key = [&](std::int64_t t, float* to) {
    widen_row(a.k, t * a.k_row + own * a.k_head, dim, a.dtype, a.normalize, 1.f, to);
  };
  F found[N];
  for (std::int64_t t = begin; t < end; t += kDeltaTokens) {
    const int some = static_cast<int>(end - t < kDeltaTokens ? end - t : kDeltaTokens);
    for (int i = 0; i < some; ++i) {
      key(t + i, keys + i * dim);
      widen_row(a.q, (t + i) * a.q_row + own * a.q_head, dim, a.dtype, a.normalize, a.scale,
                queries + i * dim);
    }
    if (t + some < end) key(t + some, keys + some * dim);
    if (t == begin) {  // what the first key finds, in the order of a pass
      F key_sum[2][N];
      for (int p = 0; p < 2; ++p) {
        for (int n = 0; n < N; ++n) key_sum[p][n] = zero();
      }
      for (int i = 0; i < dim; ++i) {
        for (int n = 0; n < N; ++n) {
          key_sum[i % 2][n] =
              fma(set1(keys[i]), load(s + i * kDeltaColumns + n * kW), key_sum[i % 2][n]);
        }
      }
      for (int n = 0; n < N; ++n) found[n] = add(key_sum[0][n], key_sum[1][n]);
    }
    for (int i = 0; i < some; ++i) {
      const std::int64_t gate = (t + i) * a.v_heads + head;
      const float decay = static_cast<float>(exp(static_cast<double>(a.log_decay[gate])));
      const F beta = set1(a.beta[gate]);
      F d[N], out[N];
      for (int n = 0; n < N; ++n) {
        const F value =
            load_any(a.v, (t + i) * a.v_row + head * a.v_head + first + n * kW, a.dtype);
        d[n] = mul(beta, sub(value, mul(set1(decay), found[n])));
      }
      if (t + i + kDeltaTokens < end) {
        const std::int64_t later = t + i + kDeltaTokens;
        call_for(a.k, later * a.k_row + own * a.k_head, dim, a.dtype);
        call_for(a.q, later * a.q_row + own * a.q_head, dim, a.dtype);
        call_for(a.v, later * a.v_row + head * a.v_head + first, N * kW, a.dtype);
      }
      const float* next = t + i + 1 < end ? keys + (i + 1) * dim : keys + i * dim;
      pass<N>(s, dim, decay, keys + i * dim, d, queries + i * dim, next, out, found);
      const std::int64_t at = ((t + i) * a.v_heads + head) * a.v_dim + first;
      for (int n = 0; n < N; ++n) store_any(a.o, at + n * kW, a.dtype, out[n]);
    }
  }
  for (int i = 0; i < dim; ++i) {
    for (int n = 0; n < N; ++n) {
      store(kept + i * a.v_dim + n * kW, load(s + i * kDeltaColumns + n * kW));
    }
  }
}

void gated(const GatedDeltaRuleArgs& a, int stream, int head, int first, int last, float* scratch) {
  constexpr int kN = kDeltaColumns / kW;
  for (; first + kDeltaColumns <= last; first += kDeltaColumns) {
    gated_strip<kN>(a, stream, head, first, scratch);
  }
  for (; first < last; first += kW) gated_strip<1>(a, stream, head, first, scratch);
}

}  // namespace
