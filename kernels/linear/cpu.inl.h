// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b. Each output is one dot product, added up in one fixed order: running sums over the
// depth in the lanes of one vector, then a fixed tree. No output knows how many rows there are,
// which is what makes the product batch-invariant; blocking changes which dots run together and
// nothing else.
#pragma once
#include <type_traits>

#include "quads.inl.h"
#include "quarters.inl.h"

namespace {

// Rows of a register block against four outputs, whose sums end in one vector.
constexpr int kM = F::registers == 32 ? 6 : 3;

// M packed rows against N outputs over [begin, end) of the depth; `kept` holds their sums from one
// visit to the next. Of the last outputs some may repeat, and only `cols` of them are written.
// Meanwhile the row at `ahead`, of weights or of x, comes nearer.
template <int M, int N, class X, class W, class A>
inline void dots(const LinearArgs& a, const typename Lanes<X, W>::Packed* x,
                 const W* const* weights, std::int64_t row, std::int64_t col, int cols,
                 std::int64_t begin, std::int64_t end, float* kept, const A* ahead) {
  using L = Lanes<X, W>;
  const W* w[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) w[n] = weights[n];
  F acc[M * N];
  if (begin) {
#pragma GCC unroll 32
    for (int i = 0; i < M * N; ++i) acc[i] = load(kept + i * kW);
  } else {
#pragma GCC unroll 32
    for (int i = 0; i < M * N; ++i) acc[i] = zero();
  }
  std::int64_t k = begin, at = 0;
#pragma GCC unroll 2
  for (; k + L::width <= end; k += L::width, x += M * L::width, at += L::width) {
    typename L::Vector xs[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) xs[m] = L::read(x + m * L::width);
    __builtin_prefetch(ahead + (k - begin), 0, 2);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const auto y = L::read(w[n] + at);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[m * N + n] = L::add(xs[m], y, acc[m * N + n]);
    }
  }
  if (end < a.depth) {
#pragma GCC unroll 32
    for (int i = 0; i < M * N; ++i) store(kept + i * kW, acc[i]);
    return;
  }
  if (k < end) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const auto y = L::part(w[n] + at, end - k);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        acc[m * N + n] = L::add(L::read(x + m * L::width), y, acc[m * N + n]);
      }
    }
  }
  F whole_sums[M * N];  // so that those of the loop stay in registers
#pragma GCC unroll 32
  for (int i = 0; i < M * N; ++i) whole_sums[i] = acc[i];
  alignas(64) float sums[(M * N + 15) / 16 * 16];
  constexpr int by16 = M * N / 16 * 16, by8 = M * N / 8 * 8;
#pragma GCC unroll 4
  for (int i = 0; i < by16; i += 16) hsum16(whole_sums + i, sums + i);
#pragma GCC unroll 2
  for (int i = by16; i < by8; i += 8) hsum8(whole_sums + i, sums + i);
#pragma GCC unroll 2
  for (int i = by8; i < M * N; i += 4) hsum4(whole_sums + i, sums + i);
  finish<X, N, sizeof(sums) / sizeof(float)>(a, sums, M, row, col, cols);
}

// The last rows, at most M.
template <int M, int N, class X, class W, class A>
inline void rest(const LinearArgs& a, const typename Lanes<X, W>::Packed* x,
                 const W* const* weights, int rows, std::int64_t row, std::int64_t col, int cols,
                 std::int64_t begin, std::int64_t end, float* kept, const A* ahead) {
  if constexpr (M > 0) {
    if (rows == M) {
      return dots<M, N, X, W>(a, x, weights, row, col, cols, begin, end, kept, ahead);
    }
    rest<M - 1, N, X, W>(a, x, weights, rows, row, col, cols, begin, end, kept, ahead);
  }
}

template <int M, int N, class X, class W>
inline void blocks(const LinearArgs& a, std::int64_t begin, std::int64_t end, std::int64_t first,
                   std::int64_t last, float* scratch) {
  using L = Lanes<X, W>;
  using Packed = typename L::Packed;
  const std::int64_t deep = headrace::kLinearDeep / static_cast<std::int64_t>(sizeof(Packed));
  const std::int64_t rows = end - begin;
  auto* packed = reinterpret_cast<Packed*>(scratch);
  float* kept = scratch + rows * headrace::linear_words(a.depth);
  const X* x = static_cast<const X*>(a.x) + begin * a.x_row;
  const W* weight = static_cast<const W*>(a.weight);
  std::int64_t k = 0;
  do {  // a depth of 0 leaves the bias
    const std::int64_t upto = k + deep < a.depth ? k + deep : a.depth;
    const std::int64_t padded = (upto - k + L::width - 1) / L::width * L::width;
    for (std::int64_t t = 0; t < rows; t += M) {
      pack_rows<L>(x + t * a.x_row + k, a.x_row, static_cast<int>(rows - t < M ? rows - t : M),
                   upto - k, packed + t * padded);
    }
    for (std::int64_t n = first; n < last; n += N) {
      const int cols = static_cast<int>(last - n < N ? last - n : N);
      float* sums = kept + (n - first) * rows * kW;
      const W* weights[N];
      for (int i = 0; i < N; ++i) {
        weights[i] = weight + (n + (i < cols ? i : cols - 1)) * a.w_row + k;
      }
      // Each block of rows calls for one row of the next weights.
      std::int64_t ahead = n + N < last ? n + N : n;
      std::int64_t t = 0;
      for (; t + M <= rows; t += M) {
        dots<M, N, X, W>(a, packed + t * padded, weights, begin + t, n, cols, k, upto,
                         sums + t * N * kW, weight + ahead * a.w_row + k);
        ahead += ahead + 1 < last && ahead + 1 < n + 2 * N;
      }
      rest<M - 1, N, X, W>(a, packed + t * padded, weights, static_cast<int>(rows - t), begin + t,
                           n, cols, k, upto, sums + t * N * kW, weight + ahead * a.w_row + k);
    }
    k = upto;
  } while (k < a.depth);
}

template <class X, class W>
inline void block(const LinearArgs& a, std::int64_t begin, std::int64_t end, std::int64_t first,
                  std::int64_t last, float* scratch) {
  // One row needs more sums at a time than four, for each to have time to end.
  if (end - begin == 1) return blocks<1, 8, X, W>(a, begin, end, first, last, scratch);
#ifdef HEADRACE_LANES
  if constexpr (kQuads<X, W>) {
    if (end - begin > 8 && a.depth * static_cast<std::int64_t>(sizeof(X)) <= kShort) {
      return blocks_of_quads<X>(a, begin, end, first, last, scratch);
    }
  }
#endif
  blocks<kM, 4, X, W>(a, begin, end, first, last, scratch);
}

void linear(const LinearArgs& a, std::int64_t begin, std::int64_t end, std::int64_t first,
            std::int64_t last, float* scratch) {
  by_rows(a.x_dtype, [&](auto x) {
    by_type(a.w_dtype,
            [&](auto w) { block<decltype(x), decltype(w)>(a, begin, end, first, last, scratch); });
  });
}

}  // namespace

#ifndef HEADRACE_DOTS
extern "C" const headrace::LinearKernels HEADRACE_JOIN(headrace_linear_, HEADRACE_LEVEL) = {
    linear,
#ifdef HEADRACE_COLUMNS
    {columns, pack_columns},
    {quarters, pack_quarters},
#else
    {nullptr, nullptr},
    {nullptr, nullptr},
#endif
    false,
};
#endif
