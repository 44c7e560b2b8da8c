// SPDX-License-Identifier: Apache-2.0
// Register-blocked pieces of online-softmax attention over one tile of at most kTile keys: logits,
// softmax, weighted values, and the rotation of a block of queries.
#pragma once
#include <math.h>
#include <string.h>

#include "args.h"
#include "csrc/simd/vec.h"
#include "kernels/common/turns.inl.h"
#include "visible.h"

namespace {

using headrace::kTile;

constexpr float kLog2e = 1.44269504088896f;
constexpr double kLn2 = 0.693147180559945309;
constexpr float kInf = __builtin_inff();

// Rows and vectors of a register block: 6 x 4 fills 24 of 32 registers, 6 x 2 fills 12 of 16.
constexpr int kRows = 6;
constexpr int kCols = F::registers == 32 ? 4 : 2;

// Bytes to pull towards the cache while a product runs: `step` of them at each step of its depth.
struct Ahead {
  const char* at;
  std::int64_t step;
};

// c[M][N * kW] (+)= a[M][depth] * b[depth][N * kW]; b is widened as it is read.
template <int M, int N, bool Accumulate, class T>
inline void block_product(const float* a, std::int64_t lda, const T* b, std::int64_t ldb, int depth,
                          float* c, std::int64_t ldc, Ahead ahead) {
  F acc[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = Accumulate ? load(c + m * ldc + n * kW) : zero();
  }
  for (int i = 0; i < depth; ++i) {
    F row[N];
    load_row<N>(b + i * ldb, row);
    for (std::int64_t line = 0; line < ahead.step; line += 64) {
      __builtin_prefetch(ahead.at + i * ahead.step + line);
    }
    for (int m = 0; m < M; ++m) {
      const F x = set1(a[m * lda + i]);
      for (int n = 0; n < N; ++n) acc[m][n] = fma(x, row[n], acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) store(c + m * ldc + n * kW, acc[m][n]);
  }
}

template <int N, bool Accumulate, class T>
inline void row_blocks(const float* a, std::int64_t lda, const T* b, std::int64_t ldb, int depth,
                       float* c, std::int64_t ldc, int rows, Ahead ahead) {
  int m = 0;
  for (; m + kRows <= rows; m += kRows, ahead.step = 0) {
    block_product<kRows, N, Accumulate>(a + m * lda, lda, b, ldb, depth, c + m * ldc, ldc, ahead);
  }
  a += m * lda;
  c += m * ldc;
  switch (rows - m) {
    case 1:
      return block_product<1, N, Accumulate>(a, lda, b, ldb, depth, c, ldc, ahead);
    case 2:
      return block_product<2, N, Accumulate>(a, lda, b, ldb, depth, c, ldc, ahead);
    case 3:
      return block_product<3, N, Accumulate>(a, lda, b, ldb, depth, c, ldc, ahead);
    case 4:
      return block_product<4, N, Accumulate>(a, lda, b, ldb, depth, c, ldc, ahead);
    case 5:
      return block_product<5, N, Accumulate>(a, lda, b, ldb, depth, c, ldc, ahead);
    default:
      return;
  }
}

// c[rows][cols] (+)= a[rows][depth] * b[depth][cols], cols a multiple of kW. Every element adds its
// terms in the order of depth, whatever block it falls in. Meanwhile the `bytes` at `next` come
// nearer.
template <bool Accumulate, class T>
inline void product(const float* a, std::int64_t lda, const T* b, std::int64_t ldb, int depth,
                    float* c, std::int64_t ldc, int rows, int cols, const void* next = nullptr,
                    std::int64_t bytes = 0) {
  Ahead ahead{static_cast<const char*>(next), next ? bytes / depth / 64 * 64 : 0};
  int n = 0;
  for (; n + kCols * kW <= cols; n += kCols * kW, ahead.step = 0) {
    row_blocks<kCols, Accumulate>(a, lda, b + n, ldb, depth, c + n, ldc, rows, ahead);
  }
  const int left = (cols - n) / kW;
  if (left == 1) row_blocks<1, Accumulate>(a, lda, b + n, ldb, depth, c + n, ldc, rows, ahead);
  if constexpr (kCols == 4) {
    if (left == 2) row_blocks<2, Accumulate>(a, lda, b + n, ldb, depth, c + n, ldc, rows, ahead);
    if (left == 3) row_blocks<3, Accumulate>(a, lda, b + n, ldb, depth, c + n, ldc, rows, ahead);
  }
}

// out[dim][kTile] = the transpose of `tokens` rows of k; columns up to the next vector are zero.
template <class T>
inline void pack_keys(const T* k, std::int64_t stride, int tokens, int dim, float* out) {
  for (int t = 0; t < tokens; t += kW) {
    const int full = tokens - t < kW ? tokens - t : kW;
    for (int d = 0; d < dim; d += kW) {
      F block[kW];
      for (int i = 0; i < full; ++i) block[i] = load(k + (t + i) * stride + d);
      for (int i = full; i < kW; ++i) block[i] = zero();
      transpose(block);
      for (int i = 0; i < kW; ++i) store(out + (d + i) * kTile + t, block[i]);
    }
  }
}

inline float first(F a) {
  float lanes[kW];
  store(lanes, a);
  return lanes[0];
}
inline float exp2_one(float x) { return first(exp2(set1(x))); }

// c * tanh(x / c) in logits of base 2: tanh(y) = 1 - 2 / (1 + 2^(2 y log2 e)), by the half that
// cannot overflow.
inline F soft_cap(F x, float cap) {
  const F y = mul(x, set1(1.f / cap));
  const F magnitude = max(sub(zero(), y), y);
  const F e = exp2(mul(magnitude, set1(-2.f * kLog2e)));
  const F t = div(sub(set1(1.f), e), add(set1(1.f), e));
  const F flipped = mul(t, set1(cap * kLog2e));
  // Near 0 the difference 1 - e has no digits left; the series has all of them.
  const F z = mul(y, y);
  F p = set1(2.1869488e-2f);
  p = fma(p, z, set1(-5.3968254e-2f));
  p = fma(p, z, set1(1.3333333e-1f));
  p = fma(p, z, set1(-3.3333333e-1f));
  p = fma(p, z, set1(1.f));
  float in[kW], out[kW], near[kW];
  store(in, y);
  store(out, flipped);
  store(near, mul(mul(y, p), set1(cap * kLog2e)));
  for (int i = 0; i < kW; ++i) {
    out[i] = in[i] > -0.25f && in[i] < 0.25f ? near[i] : in[i] < 0.f ? -out[i] : out[i];
  }
  return load(out);
}

// The state of a block of rows: unnormalised output, running maximum and sum, all in base 2.
struct Rows {
  float* o;  // [rows][dim]
  float* m;  // [rows]
  float* l;  // [rows]
  int rows, dim;
};

// Turns one row of logits into weights, in place; columns outside [lo, hi) get weight 0.
inline void softmax_row(float* s, int cols, int lo, int hi, float cap, int row, const Rows& st) {
  if (lo >= hi) {
    for (int j = 0; j < cols; j += kW) store(s + j, zero());
    return;
  }
  const bool whole = lo <= 0 && hi >= cols;
  F top = set1(-kInf);
  for (int j = 0; j < cols; j += kW) {
    F x = load(s + j);
    if (cap > 0.f) x = soft_cap(x, cap);
    if (!whole) x = keep(x, set1(-kInf), lo - j, hi - j);
    if (cap > 0.f || !whole) store(s + j, x);
    top = max(top, x);
  }
  const float seen = hmax(top);
  float m = st.m[row];
  if (seen > m) {
    const float shrink = exp2_one(m - seen);
    st.l[row] *= shrink;
    const F by = set1(shrink);
    float* o = st.o + static_cast<std::int64_t>(row) * st.dim;
    for (int d = 0; d < st.dim; d += kW) store(o + d, mul(load(o + d), by));
    m = st.m[row] = seen;
  }
  const F bias = set1(m == -kInf ? 0.f : m);
  F sum = zero();
  for (int j = 0; j < cols; j += kW) {
    F p = exp2(sub(load(s + j), bias));
    if (!whole) p = keep(p, zero(), lo - j, hi - j);
    store(s + j, p);
    sum = add(sum, p);
  }
  st.l[row] += hsum(sum);
}

inline void reset(const Rows& st) {
  for (int r = 0; r < st.rows; ++r) {
    st.m[r] = -kInf;
    st.l[r] = 0.f;
  }
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(st.rows) * st.dim; i += kW) {
    store(st.o + i, zero());
  }
}

inline bool finite(const Rows& st) {
  F sum = zero();
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(st.rows) * st.dim; i += kW) {
    sum = fma(load(st.o + i), zero(), sum);
  }
  return hsum(sum) == 0.f;
}

// Writes one finished row. The learned sink joins the denominator here and nowhere else; lse is
// natural and without it.
inline void finish_row(const float* acc, float m, float l, int dim, const float* sink_logit,
                       void* o, std::int64_t at, int dtype, float* lse) {
  if (m == -kInf && l == 0.f) {
    for (int d = 0; d < dim; d += kW) store_any(o, at + d, dtype, zero());
    *lse = -kInf;
    return;
  }
  float weight = 1.f / l;
  if (sink_logit) {
    const float b = *sink_logit * kLog2e, top = b > m ? b : m;
    const float mine = exp2_one(m - top);
    weight = b == kInf ? 0.f : mine / (l * mine + exp2_one(b - top));
  }
  const F by = set1(weight);
  for (int d = 0; d < dim; d += kW) store_any(o, at + d, dtype, mul(load(acc + d), by));
  *lse = static_cast<float>(static_cast<double>(m) * kLn2 + log(static_cast<double>(l)));
}

inline void angles(const std::int64_t* distance, const headrace::Rope& rope, float* c, float* s) {
  const double d[3] = {static_cast<double>(distance[0]), static_cast<double>(distance[1]),
                       static_cast<double>(distance[2])};
  if (rope.axes == 1) {
    turns([=](int) { return d[0]; }, rope.inv_freq, rope.half, c, s);
  } else {
    turns([&](int i) { return d[rope.freq_axis[i]]; }, rope.inv_freq, rope.half, c, s);
  }
  if (rope.gain == 1.f) return;
  for (int i = 0; i < rope.half; ++i) {
    c[i] *= rope.gain;
    s[i] *= rope.gain;
  }
}

// out = x rotated: dimension i pairs with i + half; dimensions from 2 * half on pass through.
inline void rotate(const float* x, const float* c, const float* s, int half, int dim, float* out) {
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    out[i] = a * c[i] - b * s[i];
    out[i + half] = b * c[i] + a * s[i];
  }
  for (int i = 2 * half; i < dim; ++i) out[i] = x[i];
}

// Takes a block of unnormalised split states, in order, into one row state and finishes it.
inline void merge_splits(const headrace::Share& share, int row, int rows, int dim,
                         const float* sink_logit, void* o, std::int64_t at, int dtype, float* lse) {
  const std::int64_t words = dim + 2;
  float* into = share.partial + row * words;
  float m = into[dim], l = into[dim + 1];
  for (int i = 1; i < share.splits; ++i) {
    const float* from = share.partial + (static_cast<std::int64_t>(i) * rows + row) * words;
    const float other = from[dim];
    if (other == -kInf && from[dim + 1] == 0.f) continue;
    const float top = other > m ? other : m;
    const float a = exp2_one(m - top), b = exp2_one(other - top);
    for (int d = 0; d < dim; d += kW) {
      store(into + d, fma(load(from + d), set1(b), mul(load(into + d), set1(a))));
    }
    l = l * a + from[dim + 1] * b;
    m = top;
  }
  finish_row(into, m, l, dim, sink_logit, o, at, dtype, lse);
}

// A row's state, as [D + 2] words, and back.
inline void keep_row(const Rows& st, int row, float* to) {
  const float* from = st.o + static_cast<std::int64_t>(row) * st.dim;
  for (int d = 0; d < st.dim; d += kW) store(to + d, load(from + d));
  to[st.dim] = st.m[row];
  to[st.dim + 1] = st.l[row];
}
inline void resume(const float* from, const Rows& st) {
  for (int r = 0; r < st.rows; ++r, from += st.dim + 2) {
    float* to = st.o + static_cast<std::int64_t>(r) * st.dim;
    for (int d = 0; d < st.dim; d += kW) store(to + d, load(from + d));
    st.m[r] = from[st.dim];
    st.l[r] = from[st.dim + 1];
  }
}

inline void keep_partial(const headrace::Share& share, const Rows& st) {
  const std::int64_t words = st.dim + 2;
  for (int r = 0; r < st.rows; ++r) {
    keep_row(st, r, share.partial + (static_cast<std::int64_t>(share.split) * st.rows + r) * words);
  }
}

}  // namespace
