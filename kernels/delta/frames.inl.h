// SPDX-License-Identifier: Apache-2.0
// The delta rule frame by frame: all tokens of a frame are compared with the state as it was before
// it, so a frame is three block products. An element adds up in the order of its depth or of its
// tokens, whatever the blocks, so its bits know neither strips nor threads nor calls.
#pragma once
#include <math.h>
#include <string.h>

#include "args.h"
#include "csrc/simd/vec.h"
#include "kernels/common/ahead.inl.h"

namespace {

using headrace::FrameDeltaArgs;
using headrace::kFrameColumns;
using headrace::kFrameTokens;

// An M x N-vector block of c (+)= a b, where element (m, d) of a lies at a[m * down + d * along].
template <int M, int N, bool Accumulate>
inline void block(const float* a, std::int64_t down, std::int64_t along, const float* b, int depth,
                  float* c, Coming& next) {
  // Left to itself the compiler keeps many sums in memory.
  F sum[M][N];
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      sum[m][n] = Accumulate ? load(c + m * kFrameColumns + n * kW) : zero();
    }
  }
  for (int d = 0; d < depth; ++d) {
    if (d % 2 == 0) next.call();
    F y[N];
    for (int n = 0; n < N; ++n) y[n] = load(b + d * kFrameColumns + n * kW);
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
      const F x = set1(a[m * down + d * along]);
      for (int n = 0; n < N; ++n) sum[m][n] = fma(x, y[n], sum[m][n]);
    }
  }
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) store(c + m * kFrameColumns + n * kW, sum[m][n]);
  }
}

// All rows of N vectors of columns, M at a time while there are as many. b and c have rows of
// kFrameColumns.
template <int M, int N, bool Accumulate>
inline void band(const float* a, std::int64_t down, std::int64_t along, const float* b, int depth,
                 float* c, int rows, Coming& next) {
  int m = 0;
  for (; m + M <= rows; m += M) {
    block<M, N, Accumulate>(a + m * down, down, along, b, depth, c + m * kFrameColumns, next);
  }
  if constexpr (M > 1) {
    band<M / 2, N, Accumulate>(a + m * down, down, along, b, depth, c + m * kFrameColumns, rows - m,
                               next);
  }
}

// Rows whose sums fill the registers, beside N vectors of b and an element of a.
constexpr int rows_beside(int n) { return (F::registers >= 32 ? 24 : 12) / n; }

template <int N, bool Accumulate>
inline void multiply_from(int j, const float* a, std::int64_t down, std::int64_t along,
                          const float* b, int depth, float* c, int rows, int columns,
                          Coming& next) {
  for (; j + N * kW <= columns; j += N * kW) {
    band<rows_beside(N), N, Accumulate>(a, down, along, b + j, depth, c + j, rows, next);
  }
  if constexpr (N > 1) {
    multiply_from<N - 1, Accumulate>(j, a, down, along, b, depth, c, rows, columns, next);
  }
}

template <bool Accumulate>
inline void multiply(const float* a, std::int64_t down, std::int64_t along, const float* b,
                     int depth, float* c, int rows, int columns, Coming next) {
  constexpr int kN = F::registers >= 32 ? 4 : 2;
  multiply_from<kN, Accumulate>(0, a, down, along, b, depth, c, rows, columns, next);
}

inline void widen(const void* from, std::int64_t at, int dim, int dtype, float* to) {
  for (int d = 0; d < dim; d += kW) store(to + d, load_any(from, at + d, dtype));
}

inline float inner(const float* x, const float* y, int dim) {
  F sum = zero();
  for (int d = 0; d < dim; d += kW) sum = fma(load(x + d), load(y + d), sum);
  return hsum(sum);
}

inline float decay_of(const FrameDeltaArgs& a, std::int64_t frame, std::int64_t head) {
  if (!a.log_decay) return 1.f;
  return static_cast<float>(exp(static_cast<double>(a.log_decay[frame * a.v_heads + head])));
}

constexpr std::int64_t kSoon = 8;  // tokens ahead of which a row is called for

void norms(const FrameDeltaArgs& a, std::int64_t stream, std::int64_t head, float* scratch) {
  const int dim = static_cast<int>(a.dim);
  const std::int64_t own = head / (a.v_heads / a.heads);
  float* z = scratch;  // as the frame finds it
  float* next = z + dim;
  float* x = next + dim;
  float* kept = a.norm + (a.rows[stream] * a.v_heads + head) * dim;
  memcpy(next, kept, dim * sizeof(float));
  for (std::int64_t f = a.indptr[stream]; f < a.indptr[stream + 1]; ++f) {
    const std::int64_t begin = a.frames[f], end = a.frames[f + 1];
    const F g = set1(decay_of(a, f, head));
    for (int d = 0; d < dim; d += kW) store(next + d, mul(g, load(next + d)));
    memcpy(z, next, dim * sizeof(float));
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t soon = t + kSoon < end ? t + kSoon : t;
      call_for(a.k, soon * a.k_row + own * a.k_head, dim, a.dtype);
      widen(a.k, t * a.k_row + own * a.k_head, dim, a.dtype, x);
      const F by = set1(a.beta[t * a.v_heads + head] * (1.f - inner(z, x, dim)));
      for (int d = 0; d < dim; d += kW) store(next + d, fma(by, load(x + d), load(next + d)));
    }
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t soon = t + kSoon < end ? t + kSoon : t;
      call_for(a.q, soon * a.q_row + own * a.q_head, dim, a.dtype);
      widen(a.q, t * a.q_row + own * a.q_head, dim, a.dtype, x);
      a.divisors[t * a.v_heads + head] = inner(next, x, dim) + a.eps;
    }
  }
  if (a.update) memcpy(kept, next, dim * sizeof(float));
}

void strip(const FrameDeltaArgs& a, std::int64_t stream, std::int64_t head, std::int64_t first,
           float* scratch) {
  const int dim = static_cast<int>(a.dim);
  const std::int64_t own = head / (a.v_heads / a.heads), left = a.v_dim - first;
  const int columns = static_cast<int>(left < kFrameColumns ? left : kFrameColumns);
  float* s = scratch;                     // [dim][kFrameColumns], as the frame finds it
  float* next = s + dim * kFrameColumns;  // the same, as the frame leaves it
  float* x = next + dim * kFrameColumns;  // [kFrameTokens][dim]
  float* y = x + kFrameTokens * dim;      // [kFrameTokens][kFrameColumns]
  float* kept = a.state + (a.rows[stream] * a.v_heads + head) * dim * a.v_dim + first;
  for (int d = 0; d < dim; ++d) {
    memcpy(next + d * kFrameColumns, kept + d * a.v_dim, columns * sizeof(float));
  }
  const auto rows = [](std::int64_t t, std::int64_t stop) {
    return stop - t < kFrameTokens ? stop - t : kFrameTokens;
  };
  const auto keys = [&](std::int64_t t, std::int64_t stop) {
    return rows_ahead(a.k_hat, own * a.k_hat_head, a.k_hat_row, t, rows(t, stop), dim, a.dtype);
  };
  const auto queries = [&](std::int64_t t, std::int64_t stop) {
    return rows_ahead(a.q_hat, own * a.q_hat_head, a.q_hat_row, t, rows(t, stop), dim, a.dtype);
  };
  const auto values = [&](std::int64_t t, std::int64_t stop) {
    return rows_ahead(a.v, head * a.v_head + first, a.v_row, t, rows(t, stop), columns, a.dtype);
  };
  const std::int64_t all = a.frames[a.indptr[stream + 1]];
  for (std::int64_t f = a.indptr[stream]; f < a.indptr[stream + 1]; ++f) {
    const std::int64_t begin = a.frames[f], end = a.frames[f + 1];
    const F g = set1(decay_of(a, f, head));
    for (int d = 0; d < dim; ++d) {
      for (int j = 0; j < columns; j += kW) {
        const F decayed = mul(g, load(next + d * kFrameColumns + j));
        store(s + d * kFrameColumns + j, decayed);
        store(next + d * kFrameColumns + j, decayed);
      }
    }
    for (std::int64_t t = begin; t < end; t += kFrameTokens) {
      const int n = static_cast<int>(end - t < kFrameTokens ? end - t : kFrameTokens);
      for (int i = 0; i < n; ++i) {
        widen(a.k_hat, (t + i) * a.k_hat_row + own * a.k_hat_head, dim, a.dtype, x + i * dim);
      }
      multiply<false>(x, dim, 1, s, dim, y, n, columns,
                      t + n < end ? keys(t + n, end) : queries(begin, end));
      for (int i = 0; i < n; ++i) {
        const F beta = set1(a.beta[(t + i) * a.v_heads + head]);
        for (int j = 0; j < columns; j += kW) {
          const std::int64_t at = (t + i) * a.v_row + head * a.v_head + first + j;
          float* to = y + i * kFrameColumns + j;
          store(to, mul(beta, sub(load_any(a.v, at, a.dtype), load(to))));
        }
      }
      multiply<true>(x, 1, dim, y, n, next, dim, columns, values(t + n, end));
    }
    for (std::int64_t t = begin; t < end; t += kFrameTokens) {
      const int n = static_cast<int>(end - t < kFrameTokens ? end - t : kFrameTokens);
      for (int i = 0; i < n; ++i) {
        widen(a.q_hat, (t + i) * a.q_hat_row + own * a.q_hat_head, dim, a.dtype, x + i * dim);
      }
      multiply<false>(x, dim, 1, next, dim, y, n, columns,
                      t + n < end ? queries(t + n, end) : keys(end, all));
      for (int i = 0; i < n; ++i) {
        const std::int64_t place = (t + i) * a.v_heads + head;
        const F by = set1(1.f / a.divisors[place]);
        for (int j = 0; j < columns; j += kW) {
          store_any(a.o, place * a.v_dim + first + j, a.dtype,
                    mul(by, load(y + i * kFrameColumns + j)));
        }
      }
    }
  }
  if (!a.update) return;
  for (int d = 0; d < dim; ++d) {
    memcpy(kept + d * a.v_dim, next + d * kFrameColumns, columns * sizeof(float));
  }
}

}  // namespace
