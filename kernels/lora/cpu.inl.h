// SPDX-License-Identifier: Apache-2.0
// y += factor (x A^T) B for tokens that share their adapters. A dot product of the first half adds
// up kW running sums over the depth, then a fixed tree; an output of the second adds its rank rows
// one after the other. Neither order knows how many tokens, rank rows or columns run together, so a
// row has the same bits in every batch.
#pragma once
#include <string.h>

#include <type_traits>

#include "args.h"
#include "codes.inl.h"
#include "few.inl.h"

namespace {

using headrace::kLoraChunk;

constexpr int kM = F::registers == 32 ? 4 : 2;
constexpr int kColumns = 4;           // vectors of output columns at a time
constexpr int kWide = kColumns * kW;  // columns
constexpr int kDeep = 128;            // rank rows that are widened at a time

// acc[M][N] += x[M][0:n] . a[N][0:n], lane by lane.
template <int M, int N, class T>
inline void dots(const float* x, std::int64_t x_row, const T* const* a, std::int64_t n,
                 float* sums) {
  F acc[M][N];
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < N; ++i) acc[m][i] = load(sums + (m * N + i) * kW);
  }
  std::int64_t k = 0;
  for (; k + kW <= n; k += kW) {
    F xs[M];
    for (int m = 0; m < M; ++m) xs[m] = load(x + m * x_row + k);
    for (int i = 0; i < N; ++i) {
      const F w = load(a[i] + k);
      for (int m = 0; m < M; ++m) acc[m][i] = fma(xs[m], w, acc[m][i]);
    }
  }
  if (k < n) {
    for (int i = 0; i < N; ++i) {
      float tail[kW];
      widen(a[i] + k, n - k, tail);
      for (int m = 0; m < M; ++m) acc[m][i] = fma(load(x + m * x_row + k), load(tail), acc[m][i]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < N; ++i) store(sums + (m * N + i) * kW, acc[m][i]);
  }
}

// N rank rows of a block, over the whole depth.
template <int N, class P>
inline void shrink_rows(const LoraArgs& a, const LoraBlock& b, int first, const float* xs,
                        float* sums, float* wide) {
  using T = std::conditional_t<kCodes<P>, float, P>;
  const std::int64_t stride = padded(a.depth);
  const P* base[N];
  const float* scales[N];
  for (int i = 0; i < N; ++i) {
    const int slice = slice_of(b, first + i);
    base[i] = a_row<P>(a, b.rank_rows[first + i], slice);
    if constexpr (kCodes<P>) scales[i] = a_scales(a, b.rank_rows[first + i], slice);
  }
  memset(sums, 0, sizeof(float) * b.count * N * kW);
  for (std::int64_t k = 0; k < a.depth; k += kLoraChunk) {
    const std::int64_t n = a.depth - k < kLoraChunk ? a.depth - k : kLoraChunk;
    const T* rows[N];
    for (int i = 0; i < N; ++i) {
      if constexpr (kCodes<P>) {
        widen_codes(base[i], scales[i], a.a_group, k, n, wide + i * kLoraChunk);
        rows[i] = wide + i * kLoraChunk;
      } else {
        rows[i] = base[i] + k;
      }
    }
    int m = 0;
    for (; m + kM <= b.count; m += kM) {
      dots<kM, N>(xs + m * stride + k, stride, rows, n, sums + m * N * kW);
    }
    for (; m < b.count; ++m) dots<1, N>(xs + m * stride + k, stride, rows, n, sums + m * N * kW);
  }
  const int all = b.starts[a.slices];
  for (int m = 0; m < b.count; ++m) {
    for (int i = 0; i < N; ++i) {
      b.bridge[m * all + first + i] =
          hsum(load(sums + (m * N + i) * kW)) * b.factors[m * b.width + b.adapter[first + i]];
    }
  }
}

template <class P>
inline void shrink_of(const LoraArgs& a, const LoraBlock& b, int first, int last, float* scratch) {
  float* xs = scratch;
  float* sums = xs + b.count * padded(a.depth);
  float* wide = sums + b.count * kLoraRanks * kW;
  for (int m = 0; m < b.count; ++m) {
    widen_any(a.x, b.tokens[m] * a.x_row, a.depth, a.x_dtype, xs + m * padded(a.depth));
  }
  if (b.count < kM && (!kCodes<P> || a.a_group % kBlock == 0)) {
    return shrink_few<P>(a, b, first, last, xs, padded(a.depth));
  }
  int r = first;
  for (; r + kLoraRanks <= last; r += kLoraRanks) {
    shrink_rows<kLoraRanks, P>(a, b, r, xs, sums, wide);
  }
  for (; r < last; ++r) shrink_rows<1, P>(a, b, r, xs, sums, wide);
}

// acc[M][kWide] += c[M][0:depth] rows[0:depth][kWide]
template <int M, class T>
inline void rank_rows(const float* c, std::int64_t c_row, const T* const* rows, std::int64_t at,
                      int depth, float* into) {
  F acc[M][kColumns];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < kColumns; ++n) acc[m][n] = load(into + m * kWide + n * kW);
  }
  for (int r = 0; r < depth; ++r) {
    const T* row = rows[r] + at;
    F w[kColumns];
    for (int n = 0; n < kColumns; ++n) w[n] = load(row + n * kW);
    for (int m = 0; m < M; ++m) {
      const F x = set1(c[m * c_row + r]);
      for (int n = 0; n < kColumns; ++n) acc[m][n] = fma(x, w[n], acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < kColumns; ++n) store(into + m * kWide + n * kW, acc[m][n]);
  }
}

template <class T>
inline void all_rank_rows(const LoraBlock& b, const float* c, std::int64_t c_row,
                          const T* const* rows, std::int64_t at, int depth, float* acc) {
  int m = 0;
  for (; m + kM <= b.count; m += kM) {
    rank_rows<kM>(c + m * c_row, c_row, rows, at, depth, acc + m * kWide);
  }
  for (; m < b.count; ++m) rank_rows<1>(c + m * c_row, c_row, rows, at, depth, acc + m * kWide);
}

inline void store_some(void* p, std::int64_t at, int n, int dtype, F value) {
  if (n >= kW) return store_any(p, at, dtype, value);
  const int size = headrace::dtype_size(dtype);
  char lanes[kW * 4];
  store_any(lanes, 0, dtype, value);
  memcpy(static_cast<char*>(p) + at * size, lanes, n * size);
}

// Adds columns [first, first + n) of the accumulated product to the rows of y.
inline void finish(const LoraArgs& a, const LoraBlock& b, std::int64_t first, int n,
                   const float* acc, std::int64_t acc_row) {
  bool plain = b.gain_row < 0;
  for (int w = 0; w < b.width; ++w) plain = plain && b.bias_rows[w] < 0;
  for (int m = 0; m < b.count; ++m) {
    int i = 0;
    for (const std::int64_t at = b.tokens[m] * a.y_row + first; plain && i + kW <= n; i += kW) {
      const F y = add(load_any(a.y, at + i, a.x_dtype), load(acc + m * acc_row + i));
      store_any(a.y, at + i, a.x_dtype, y);
    }
    for (; i < n; i += kW) {
      const int some = n - i < kW ? n - i : kW;
      const std::int64_t at = first + i, y_at = b.tokens[m] * a.y_row + at;
      float lanes[kW];
      F sum = load(acc + m * acc_row + i);
      for (int w = 0; w < b.width; ++w) {
        if (b.bias_rows[w] < 0) continue;
        widen_any(a.bias, b.bias_rows[w] * a.outputs + at, some, headrace::kF32, lanes);
        sum = fma(set1(b.factors[m * b.width + w]), load(lanes), sum);
      }
      widen_any(a.y, y_at, some, a.x_dtype, lanes);
      F y = load(lanes);
      if (b.gain_row >= 0) {
        F base = zero();
        if (a.base_bias) {
          widen_any(a.base_bias, at, some, headrace::kF32, lanes);
          base = load(lanes);
        }
        widen_any(a.gain, b.gain_row * a.outputs + at, some, headrace::kF32, lanes);
        y = fma(load(lanes), add(sub(y, base), sum), base);
      } else {
        y = add(y, sum);
      }
      store_some(a.y, y_at, some, a.x_dtype, y);
    }
  }
}

// Columns [at, at + n) of rank rows [first, first + depth), kWide floats a row.
template <class P>
inline void widen_columns(const LoraArgs& a, const LoraBlock& b, int first, int depth,
                          std::int64_t at, int n, float* to) {
  if constexpr (kCodes<P>) {
    for (int r = 0; r < depth; ++r) {
      const std::int64_t row = b.rank_rows[first + r];
      widen_codes(b_row<P>(a, row), b_scales(a, row), a.b_group, at, n, to + r * kWide);
    }
  } else {
    for (int r = 0; r < depth; ++r) {
      const std::int64_t row = b.rank_rows[first + r];
      const P* base = b_row<P>(a, row) + at * a.b_col;
      if (a.b_col == 1) {
        widen(base, n, to + r * kWide);
        continue;
      }
      // Rank rows that lie side by side (B as it was trained): a block is turned at a time.
      const bool block = a.b_rank == 1 && r + kW <= depth && n == kWide &&
                         b.rank_rows[first + r + kW - 1] - row == kW - 1 &&
                         row % a.b_ranks + kW <= a.b_ranks;
      if (block) {
        for (int i = 0; i < kWide; i += kW) {
          F turned[kW];
          for (int j = 0; j < kW; ++j) turned[j] = load(base + (i + j) * a.b_col);
          transpose(turned);
          for (int j = 0; j < kW; ++j) store(to + (r + j) * kWide + i, turned[j]);
        }
        r += kW - 1;
        continue;
      }
      P lanes[kWide] = {};
      for (int i = 0; i < n; ++i) lanes[i] = base[i * a.b_col];
      widen(lanes, kWide, to + r * kWide);
    }
  }
}

template <class P>
inline void expand_of(const LoraArgs& a, const LoraBlock& b, std::int64_t first, std::int64_t last,
                      float* scratch) {
  float* acc = scratch;                                                      // [count][kWide]
  float* wide = acc + b.count * kWide;                                       // [kDeep][kWide]
  const void** rows = reinterpret_cast<const void**>(wide + kDeep * kWide);  // [kDeep]
  const int all = b.starts[a.slices];
  std::int64_t begin = 0;
  for (int slice = 0; slice < a.slices; begin = b.ends[slice++]) {
    const std::int64_t lo = first > begin ? first : begin;
    const std::int64_t hi = last < b.ends[slice] ? last : b.ends[slice];
    const int start = b.starts[slice], depth = b.starts[slice + 1] - start;
    if (b.count < kM && a.b_col == 1) {
      for (std::int64_t at = lo; at < hi; at += kStrip) {
        const int n = static_cast<int>(hi - at < kStrip ? hi - at : kStrip);
        expand_strip<P>(a, b, slice, at, n, hi, scratch);
        finish(a, b, at, n, scratch, kStrip);
      }
      continue;
    }
    for (std::int64_t at = lo; at < hi; at += kWide) {
      const int n = static_cast<int>(hi - at < kWide ? hi - at : kWide);
      memset(acc, 0, sizeof(float) * b.count * kWide);
      for (int r = 0; r < depth; r += kDeep) {
        const int deep = depth - r < kDeep ? depth - r : kDeep;
        const float* c = b.bridge + start + r;
        bool direct = false;
        if constexpr (!kCodes<P>) direct = n == kWide && a.b_col == 1;
        if constexpr (!kCodes<P>) {
          if (direct) {
            const P** at_rows = reinterpret_cast<const P**>(rows);
            for (int i = 0; i < deep; ++i) {
              at_rows[i] = b_row<P>(a, b.rank_rows[start + r + i]);
            }
            all_rank_rows(b, c, all, at_rows, at, deep, acc);
          }
        }
        if (!direct) {
          widen_columns<P>(a, b, start + r, deep, at, n, wide);
          const float** at_rows = reinterpret_cast<const float**>(rows);
          for (int i = 0; i < deep; ++i) at_rows[i] = wide + i * kWide;
          all_rank_rows(b, c, all, at_rows, 0, deep, acc);
        }
      }
      finish(a, b, at, n, acc, kWide);
    }
  }
}

void shrink(const LoraArgs& a, const LoraBlock& b, int first, int last, float* scratch) {
  switch (a.pool_dtype) {
    case headrace::kPoolF32:
      return shrink_of<float>(a, b, first, last, scratch);
    case headrace::kPoolBF16:
      return shrink_of<bf16>(a, b, first, last, scratch);
    case headrace::kPoolF16:
      return shrink_of<fp16>(a, b, first, last, scratch);
    case headrace::kPoolI8:
      return shrink_of<i8>(a, b, first, last, scratch);
    default:
      return shrink_of<i4>(a, b, first, last, scratch);
  }
}

void expand(const LoraArgs& a, const LoraBlock& b, std::int64_t first, std::int64_t last,
            float* scratch) {
  switch (a.pool_dtype) {
    case headrace::kPoolF32:
      return expand_of<float>(a, b, first, last, scratch);
    case headrace::kPoolBF16:
      return expand_of<bf16>(a, b, first, last, scratch);
    case headrace::kPoolF16:
      return expand_of<fp16>(a, b, first, last, scratch);
    case headrace::kPoolI8:
      return expand_of<i8>(a, b, first, last, scratch);
    default:
      return expand_of<i4>(a, b, first, last, scratch);
  }
}

}  // namespace

extern "C" const headrace::LoraKernels HEADRACE_JOIN(headrace_lora_, HEADRACE_LEVEL) = {shrink,
                                                                                        expand};
