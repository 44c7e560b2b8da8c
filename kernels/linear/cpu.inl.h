// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b. Each output is one dot product, added up in one fixed order: running sums over the
// depth in the lanes of one vector, then a fixed tree. No output knows how many rows there are,
// which is what makes the product batch-invariant; blocking changes which dots run together and
// nothing else.
#pragma once
#include "quads.inl.h"

namespace {

// Rows of a register block against four outputs, whose sums end in one vector.
constexpr int kM = F::registers == 32 ? 6 : 3;

// out = `rows` rows of x side by side: a vector of each, then the next of each. Rows that lie a
// power of two apart would fight for the same few lines of the cache.
template <class L, class X>
inline void pack_rows(const X* x, std::int64_t x_row, int rows, std::int64_t depth,
                      typename L::Packed* out) {
  std::int64_t k = 0;
  for (; k + L::width <= depth; k += L::width) {
    for (int m = 0; m < rows; ++m, out += L::width) L::pack(x + m * x_row + k, out);
  }
  if (k == depth) return;
  for (int m = 0; m < rows; ++m, out += L::width) {
    L::pack(Tail<L, X>(x + m * x_row + k, static_cast<int>(depth - k)).lanes, out);
  }
}

// M packed rows against N outputs over [begin, end) of the depth; `kept` holds their sums from one
// visit to the next. Of the last outputs some may repeat, and only `cols` of them are written.
// Meanwhile the row of weights at `ahead` comes nearer.
template <int M, int N, class X, class W>
inline void dots(const LinearArgs& a, const typename Lanes<X, W>::Packed* x, std::int64_t row,
                 std::int64_t col, int cols, std::int64_t begin, std::int64_t end, float* kept,
                 const W* ahead) {
  using L = Lanes<X, W>;
  const W* w[N];
  for (int n = 0; n < N; ++n) {
    w[n] = static_cast<const W*>(a.weight) + (col + (n < cols ? n : cols - 1)) * a.w_row;
  }
  F acc[M * N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m * N + n] = begin ? load(kept + (m * N + n) * kW) : zero();
  }
  std::int64_t k = begin;
  for (; k + L::width <= end; k += L::width, x += M * L::width) {
    typename L::Vector xs[M];
    for (int m = 0; m < M; ++m) xs[m] = L::read(x + m * L::width);
    __builtin_prefetch(ahead + k, 0, 2);
    for (int n = 0; n < N; ++n) {
      const auto y = L::read(w[n] + k);
      for (int m = 0; m < M; ++m) acc[m * N + n] = L::add(xs[m], y, acc[m * N + n]);
    }
  }
  if (end < a.depth) {
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < N; ++n) store(kept + (m * N + n) * kW, acc[m * N + n]);
    }
    return;
  }
  for (int n = 0; k < end && n < N; ++n) {
    const auto y = L::read(Tail<L, W>(w[n] + k, static_cast<int>(end - k)).lanes);
    for (int m = 0; m < M; ++m)
      acc[m * N + n] = L::add(L::read(x + m * L::width), y, acc[m * N + n]);
  }
  alignas(64) float sums[(M * N + 15) / 16 * 16];
  int i = 0;
  for (; i + 16 <= M * N; i += 16) hsum16(acc + i, sums + i);
  for (; i + 8 <= M * N; i += 8) hsum8(acc + i, sums + i);
  for (; i < M * N; i += 4) hsum4(acc + i, sums + i);
  finish<X, N, sizeof(sums) / sizeof(float)>(a, sums, M, row, col, cols);
}

// The last rows, fewer than a block.
template <int M, int N, class X, class W>
inline void rest(const LinearArgs& a, const typename Lanes<X, W>::Packed* x, int rows,
                 std::int64_t row, std::int64_t col, int cols, std::int64_t begin, std::int64_t end,
                 float* kept, const W* ahead) {
  if constexpr (M > 0) {
    if (rows == M) return dots<M, N, X, W>(a, x, row, col, cols, begin, end, kept, ahead);
    rest<M - 1, N, X, W>(a, x, rows, row, col, cols, begin, end, kept, ahead);
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
      // Each block of rows calls for one row of the next weights.
      std::int64_t ahead = n + N < last ? n + N : n;
      std::int64_t t = 0;
      for (; t + M <= rows; t += M) {
        dots<M, N, X, W>(a, packed + t * padded, begin + t, n, cols, k, upto, sums + t * N * kW,
                         weight + ahead * a.w_row);
        ahead += ahead + 1 < last && ahead + 1 < n + 2 * N;
      }
      rest<M - 1, N, X, W>(a, packed + t * padded, static_cast<int>(rows - t), begin + t, n, cols,
                           k, upto, sums + t * N * kW, weight + ahead * a.w_row);
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

template <class X>
inline void by_weight(const LinearArgs& a, std::int64_t begin, std::int64_t end, std::int64_t first,
                      std::int64_t last, float* scratch) {
  if (a.w_dtype == headrace::kF32) return block<X, float>(a, begin, end, first, last, scratch);
  if (a.w_dtype == headrace::kBF16) return block<X, bf16>(a, begin, end, first, last, scratch);
  return block<X, fp16>(a, begin, end, first, last, scratch);
}

void linear(const LinearArgs& a, std::int64_t begin, std::int64_t end, std::int64_t first,
            std::int64_t last, float* scratch) {
  if (a.x_dtype == headrace::kF32) return by_weight<float>(a, begin, end, first, last, scratch);
  if (a.x_dtype == headrace::kBF16) return by_weight<bf16>(a, begin, end, first, last, scratch);
  return by_weight<fp16>(a, begin, end, first, last, scratch);
}

}  // namespace

extern "C" const headrace::LinearKernels HEADRACE_JOIN(headrace_linear_, HEADRACE_LEVEL) = {linear};
