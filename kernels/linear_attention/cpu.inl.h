// SPDX-License-Identifier: Apache-2.0
// Causal linear attention in its recurrent order, a block of tokens at a time: rows of the state
// stay in registers while all tokens of the block pass, so it is read and written once a block, and
// no bit depends on where blocks begin.
#pragma once
#include <string.h>

#include "absorb.inl.h"
#include "kernels/common/ahead.inl.h"
#include "kernels/common/turns.inl.h"

namespace {

using headrace::kLinearBlock;
using headrace::LinearAttentionArgs;

// The numerator's form of a row, and phi of the row as it came.
inline void forms(const LinearAttentionArgs& a, const void* x, std::int64_t at, const float* c,
                  const float* s, float* work, float* numerator, float* phi) {
  const int dim = static_cast<int>(a.dim);
  for (int d = 0; d < dim; d += kW) store(work + d, load_any(x, at + d, a.dtype));
  feature_row(work, dim, a.feature, phi);
  const float* base = a.raw ? work : phi;
  turn_row(base, c, s, 1.f, static_cast<int>(a.half), dim, numerator);
}

inline float dot(const float* x, const float* y, int dim) {
  F sum = zero();
  for (int d = 0; d < dim; d += kW) sum = fma(load(x + d), load(y + d), sum);
  return hsum(sum);
}

// sums[t] = phi(q_t) . norm as it is once token t is in it; norm itself stays.
inline void divisors(const LinearAttentionArgs& a, const float* norm, const float* k_phi,
                     const float* q_phi, int n, float decay, float* now, float* sums) {
  const int dim = static_cast<int>(a.dim);
  memcpy(now, norm, dim * sizeof(float));
  for (int t = 0; t < n; ++t) {
    if (a.k) absorb_norm(k_phi + t * dim, 1, dim, decay, now);
    sums[t] = dot(q_phi + t * dim, now, dim);
  }
}

// Rows of the next block, called for while the state of this one passes.
struct Next {
  Coming k, v, q;
  void row(int) { k.call(), v.call(), q.call(); }
};

void run(const LinearAttentionArgs& a, std::int64_t stream, std::int64_t head, float* scratch) {
  const int dim = static_cast<int>(a.dim), v_dim = static_cast<int>(a.v_dim);
  const int half = static_cast<int>(a.half);
  const std::int64_t group = a.heads / a.kv_heads, place = a.rows[stream] * a.kv_heads + head;
  float* k = scratch;
  float* k_phi = k + kLinearBlock * dim;
  float* q = k_phi + kLinearBlock * dim;
  float* q_phi = q + kLinearBlock * dim;
  float* v = q_phi + kLinearBlock * dim;
  float* o = v + kLinearBlock * v_dim;
  float* c = o + kLinearBlock * v_dim;
  float* s = c + kLinearBlock * half;
  float* work = s + kLinearBlock * half;
  float* state = a.state + place * dim * v_dim;
  float* norm = a.norm ? a.norm + place * dim : nullptr;
  fetch_rows(state, kAhead, v_dim);
  const float decay = a.log_decay ? expf(a.log_decay[head]) : 1.f;
  const float eps = a.count ? a.eps * static_cast<float>(a.count[a.rows[stream]]) : a.eps;
  const std::int64_t end = a.indptr[stream + 1];
  for (std::int64_t begin = a.indptr[stream]; begin < end; begin += kLinearBlock) {
    const std::int64_t left = end - begin;
    const int n = static_cast<int>(left < kLinearBlock ? left : kLinearBlock);
    const auto next = [&](const void* x, std::int64_t row, std::int64_t at, int wide) {
      const std::int64_t rest = left - n;
      return rows_ahead(x, at, row, begin + n, rest < kLinearBlock ? rest : kLinearBlock, wide,
                        a.dtype);
    };
    for (int t = 0; t < n; ++t) {
      if (half) {
        const double offset = static_cast<double>(a.offset[begin + t]);
        turns([=](int) { return offset; }, a.inv_freq, half, c + t * half, s + t * half);
      }
      if (!a.k) continue;
      forms(a, a.k, (begin + t) * a.k_row + head * a.k_head, c + t * half, s + t * half, work,
            k + t * dim, k_phi + t * dim);
      const std::int64_t at = (begin + t) * a.v_row + head * a.v_head;
      for (int d = 0; d < v_dim; d += kW) store(v + t * v_dim + d, load_any(a.v, at + d, a.dtype));
    }
    for (std::int64_t h = head * group; a.q && h < (head + 1) * group; ++h) {
      const bool last = h + 1 == (head + 1) * group;  // the last head of a group leaves the sums
      for (int t = 0; t < n; ++t) {
        forms(a, a.q, (begin + t) * a.q_row + h * a.q_head, c + t * half, s + t * half, work,
              q + t * dim, q_phi + t * dim);
      }
      for (int i = 0; i < n * v_dim; i += kW) store(o + i, zero());
      Next rows{{}, {}, next(a.q, a.q_row, h * a.q_head, dim)};
      if (a.k && h == head * group) {
        rows.k = next(a.k, a.k_row, head * a.k_head, dim);
        rows.v = next(a.v, a.v_row, head * a.v_head, v_dim);
      }
      if (!a.k) {
        fold<false, true>(k, v, q, n, dim, v_dim, 1.f, state, o, rows);
      } else if (last) {
        fold<true, true>(k, v, q, n, dim, v_dim, decay, state, o, rows);
      } else {
        fold<true, true, false>(k, v, q, n, dim, v_dim, decay, state, o, rows);
      }
      float sums[kLinearBlock];
      if (norm) divisors(a, norm, k_phi, q_phi, n, decay, work, sums);
      for (int t = 0; t < n; ++t) {
        const F by = set1(norm ? 1.f / (sums[t] + eps) : a.scale);
        for (int d = 0; d < v_dim; d += kW) {
          store_any(a.o, ((begin + t) * a.heads + h) * v_dim + d, a.dtype,
                    mul(load(o + t * v_dim + d), by));
        }
      }
    }
    if (!a.k) continue;
    if (!a.q) absorb_rows(k, v, n, dim, v_dim, decay, state);
    if (norm) absorb_norm(k_phi, n, dim, decay, norm);
  }
}

}  // namespace

extern "C" const headrace::LinearAttentionKernels HEADRACE_JOIN(headrace_linear_attention_,
                                                                HEADRACE_LEVEL) = {run};
