// SPDX-License-Identifier: Apache-2.0
// Register-blocked pieces of online-softmax attention over one tile of at most kTile keys: logits,
// softmax, weighted values, and the rotation of a block of queries.
#pragma once
#include <math.h>
#include <string.h>

#include "args.h"
#include "csrc/simd/vec.h"
#include "kernels/common/turns.inl.h"
#include "multiply.inl.h"
#include "visible.h"

namespace {

using headrace::kTile;

constexpr float kLog2e = 1.44269504088896f;
constexpr double kLn2 = 0.693147180559945309;
constexpr float kInf = __builtin_inff();

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

// A row's state follows the largest logit that it has seen only when that has grown by more than
// this, in base 2: weights then reach 2^8, and hardly a tile scales its rows.
constexpr float kGrowth = 8.f;

inline F largest(const float* s, int cols) {
  F top = set1(-kInf);
  for (int j = 0; j < cols; j += kW) top = max(load(s + j), top);
  return top;
}

// By how much logits outgrow the state of their row, above 0. NaN comes out as `than`.
inline F outgrown(F logits, float m, F than) { return max(sub(logits, set1(m + kGrowth)), than); }

inline void grow(const Rows& st, int row, float seen) {
  const float shrink = exp2_one(st.m[row] - seen);
  st.m[row] = seen;
  st.l[row] *= shrink;
  const F by = set1(shrink);
  float* o = st.o + static_cast<std::int64_t>(row) * st.dim;
  for (int d = 0; d < st.dim; d += kW) store(o + d, mul(load(o + d), by));
}

// Turns N rows of logits, kTile apart, into weights, in place, and adds them to their sums.
template <int N, bool Whole>
inline void weigh(float* s, int cols, int lo, int hi, int row, const Rows& st) {
  F bias[N], sums[N];
  for (int i = 0; i < N; ++i) {
    bias[i] = set1(st.m[row + i] == -kInf ? 0.f : st.m[row + i]);
    sums[i] = zero();
  }
  for (int j = 0; j < cols; j += kW) {
    F p[N];
    for (int i = 0; i < N; ++i) p[i] = sub(load(s + i * kTile + j), bias[i]);
    exp2<N>(p);
    for (int i = 0; i < N; ++i) {
      if (!Whole) p[i] = keep(p[i], zero(), lo - j, hi - j);
      store(s + i * kTile + j, p[i]);
      sums[i] = add(sums[i], p[i]);
    }
  }
  float total[4];
  if (N == 4) hsum4(sums, total);
  for (int i = 0; i < N; ++i) st.l[row + i] += N == 4 ? total[i] : hsum(sums[i]);
}

// Turns `count` rows of logits from `row` on into weights, in place; columns outside [lo, hi) get
// weight 0. Every step is one for all rows, so that none waits for its own.
template <bool Whole>
inline void softmax_rows(float* s, int cols, int lo, int hi, float cap, int row, int count,
                         const Rows& st) {
  F over = zero();
  for (int r = 0; r < count; ++r) {
    float* own = s + r * kTile;
    for (int j = 0; (cap > 0.f || !Whole) && j < cols; j += kW) {
      const F x = cap > 0.f ? soft_cap(load(own + j), cap) : load(own + j);
      store(own + j, Whole ? x : keep(x, set1(-kInf), lo - j, hi - j));
    }
    over = outgrown(largest(own, cols), st.m[row + r], over);
  }
  if (hmax(over) > 0.f) {
    for (int r = 0; r < count; ++r) {
      const F top = largest(s + r * kTile, cols);
      if (hmax(outgrown(top, st.m[row + r], zero())) > 0.f) grow(st, row + r, hmax(top));
    }
  }
  int r = 0;
  for (; r + 4 <= count; r += 4) weigh<4, Whole>(s + r * kTile, cols, lo, hi, row + r, st);
  for (; r < count; ++r) weigh<1, Whole>(s + r * kTile, cols, lo, hi, row + r, st);
}

// Turns the logits of a tile, kTile to a row, into weights, in place. `ranges` holds the keys
// [lo, hi) that each position sees, counted from `column`; the others get weight 0.
HEADRACE_ONCE void softmax(float* s, int cols, int column, const int* ranges, int positions,
                           int group, float cap, const Rows& st) {
  for (int i = 0, next; i < positions; i = next) {
    const int lo = column + ranges[2 * i], hi = column + ranges[2 * i + 1];
    const bool whole = lo <= 0 && hi >= cols;
    for (next = i + 1; whole && next < positions; ++next) {
      if (column + ranges[2 * next] > 0 || column + ranges[2 * next + 1] < cols) break;
    }
    const int row = i * group, count = (next - i) * group;
    float* own = s + row * kTile;
    if (whole) {
      softmax_rows<true>(own, cols, lo, hi, cap, row, count, st);
      continue;
    }
    // Vectors that none of these rows sees are weights of 0 without an exponential.
    const int begin = lo < hi ? lo / kW * kW : cols, end = lo < hi ? (hi + kW - 1) / kW * kW : cols;
    for (int r = 0; r < count; ++r) {
      for (int j = 0; j < begin; j += kW) store(own + r * kTile + j, zero());
      for (int j = end; j < cols; j += kW) store(own + r * kTile + j, zero());
    }
    if (begin < end) {
      softmax_rows<false>(own + begin, end - begin, lo - begin, hi - begin, cap, row, count, st);
    }
  }
}

HEADRACE_ONCE void reset(const Rows& st) {
  for (int r = 0; r < st.rows; ++r) {
    st.m[r] = -kInf;
    st.l[r] = 0.f;
  }
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(st.rows) * st.dim; i += kW) {
    store(st.o + i, zero());
  }
}

HEADRACE_ONCE bool finite(const Rows& st) {
  F sum = zero();
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(st.rows) * st.dim; i += kW) {
    sum = fma(load(st.o + i), zero(), sum);
  }
  return hsum(sum) == 0.f;
}

// Writes one finished row. The learned sink joins the denominator here and nowhere else; lse is
// natural and without it.
HEADRACE_ONCE void finish_row(const float* acc, float m, float l, int dim, const float* sink_logit,
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

HEADRACE_ONCE void angles(const std::int64_t* distance, const headrace::Rope& rope, float* c,
                          float* s) {
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
HEADRACE_ONCE void rotate(const float* x, const float* c, const float* s, int half, int dim,
                          float* out) {
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    out[i] = a * c[i] - b * s[i];
    out[i + half] = b * c[i] + a * s[i];
  }
  for (int i = 2 * half; i < dim; ++i) out[i] = x[i];
}

// Takes a block of unnormalised split states, in order, into one row state and finishes it.
HEADRACE_ONCE void merge_splits(const headrace::Share& share, int row, int rows, int dim,
                                const float* sink_logit, void* o, std::int64_t at, int dtype,
                                float* lse) {
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

HEADRACE_ONCE void keep_partial(const headrace::Share& share, const Rows& st) {
  const std::int64_t words = st.dim + 2;
  for (int r = 0; r < st.rows; ++r) {
    keep_row(st, r, share.partial + (static_cast<std::int64_t>(share.split) * st.rows + r) * words);
  }
}

}  // namespace
