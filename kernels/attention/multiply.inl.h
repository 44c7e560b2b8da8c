// SPDX-License-Identifier: Apache-2.0
// The product of two blocks that fit into caches, by sums that stay in registers while what is read
// next comes nearer.
#pragma once
#include <type_traits>

#include "csrc/simd/vec.h"

// A function that is compiled once for all its callers: copied into the pass of every dtype it
// would run no faster, and take three times as long to compile.
#define HEADRACE_ONCE __attribute__((noinline, noclone)) inline

namespace {

// Vectors of a register block, and its rows: enough sums to hide the latency of multiply-adds, and
// a divisor of the 64 rows that a block of queries mostly has.
constexpr int kCols = F::registers == 32 ? 4 : 2;
constexpr int rows_of(int cols) { return cols == 1 ? 8 : (F::registers == 32 ? 16 : 12) / cols; }

// Columns of a whole register block.
constexpr int kPanel = kCols * kW;

template <int N>
struct Width {
  static constexpr int value = N;
};

// What to pull towards the cache while a product runs: `step` bytes more before every kFew steps of
// depth. All at once they would be in the way of the product's own loads; with a look at every step
// the processor would have more to decode than it multiplies in that time.
constexpr int kFew = 2;
// Processors that have AVX-512 and no pairs of bf16 are Intel's, whose lines come two at a time.
#if defined(HEADRACE_APART) && !defined(HEADRACE_DOTS)
constexpr int kPulled = 128;
#else
constexpr int kPulled = 64;
#endif
// Where there are pairs, it comes to the second-level cache: the first has fewer buffers for what
// is on its way. (3: to all caches.)
#ifdef HEADRACE_DOTS
constexpr int kNearness = 2;
#else
constexpr int kNearness = 3;
#endif

struct Ahead {
  const char *at, *stop;
  std::int64_t step;

  void call() {
    for (stop += step; at < stop; at += kPulled) __builtin_prefetch(at, 0, kNearness);
  }
};

// Whether rows of T are read as vectors that take even and odd columns in turn, two at a time.
#ifdef HEADRACE_APART
template <class T>
constexpr bool kApart = std::is_same_v<T, bf16>;
#else
template <class T>
constexpr bool kApart = false;
#endif

template <int N, class T>
inline void read_row(const T* p, F* out) {
#ifdef HEADRACE_APART
  if constexpr (kApart<T>) {
    for (int n = 0; n + 1 < N; n += 2) load_apart(p + n * kW, out + n);
    if (N % 2) out[N - 1] = load(p + (N - 1) * kW);
    return;
  }
#endif
  load_row<N>(p, out);
}
template <bool Apart, int N>
inline void order_sums([[maybe_unused]] F* sums) {
#ifdef HEADRACE_APART
  for (int n = 0; n + 1 < N; n += 2) Apart ? take_apart(sums + n) : put_together(sums + n);
#endif
}

// acc[M][N] += a column of a, lda apart, times a row of b, which is widened as it is read. Left to
// itself the compiler keeps the sums in memory.
template <int M, int N, class T>
__attribute__((always_inline)) inline void add_step(const float* a, std::int64_t lda, const T* b,
                                                    F (&acc)[M][N]) {
  F row[N];
  read_row<N>(b, row);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const F x = set1(a[m * lda]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = fma(x, row[n], acc[m][n]);
  }
}

// c[M][N * kW] (+)= a[M][depth] * b[depth][N * kW]
template <int M, int N, class T>
HEADRACE_ONCE Ahead block_product(const float* a, std::int64_t lda, const T* b, std::int64_t ldb,
                                  int depth, bool accumulate, float* c, std::int64_t ldc,
                                  Ahead ahead) {
  F acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = zero();
  }
  if (accumulate) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = load(c + m * ldc + n * kW);
      if (kApart<T>) order_sums<true, N>(acc[m]);
    }
  }
  for (; depth >= kFew; depth -= kFew, a += kFew, b += kFew * ldb) {
    ahead.call();
#pragma GCC unroll 2
    for (int i = 0; i < kFew; ++i) add_step(a + i, lda, b + i * ldb, acc);
  }
  for (int i = 0; i < depth; ++i) add_step(a + i, lda, b + i * ldb, acc);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    if (kApart<T>) order_sums<false, N>(acc[m]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(c + m * ldc + n * kW, acc[m][n]);
  }
  return ahead;
}

template <int M, int N, class T>
inline void row_blocks(const float* a, std::int64_t lda, const T* b, std::int64_t ldb, int depth,
                       bool accumulate, float* c, std::int64_t ldc, int rows, Ahead& ahead) {
  for (; rows >= M; rows -= M, a += M * lda, c += M * ldc) {
    ahead = block_product<M, N>(a, lda, b, ldb, depth, accumulate, c, ldc, ahead);
  }
  if constexpr (M > 1) {
    if (rows) row_blocks<M - 1, N>(a, lda, b, ldb, depth, accumulate, c, ldc, rows, ahead);
  }
}

// c[rows][cols] (+)= a[rows][depth] * b[depth][cols], cols a multiple of kW. Every element adds its
// terms in the order of depth, whatever block it falls in. Meanwhile the `bytes` at `next` come
// nearer.
template <class T>
HEADRACE_ONCE void multiply(const float* a, std::int64_t lda, const T* b, std::int64_t ldb,
                            int depth, bool accumulate, float* c, std::int64_t ldc, int rows,
                            int cols, const void* next, std::int64_t bytes) {
  const int blocks = (rows + rows_of(kCols) - 1) / rows_of(kCols) * (cols / kPanel);
  const char* at = static_cast<const char*>(next);
  const int calls = depth / kFew * blocks;
  Ahead ahead{at, at, next && calls ? bytes / calls : 0};
  const auto some = [&](auto width, int n) {
    constexpr int N = decltype(width)::value;
    row_blocks<rows_of(N), N>(a, lda, b + n, ldb, depth, accumulate, c + n, ldc, rows, ahead);
  };
  int n = 0;
  for (; n + kPanel <= cols; n += kPanel) some(Width<kCols>{}, n);
  const int left = (cols - n) / kW;
  if (left == 1) some(Width<1>{}, n);
  if constexpr (kCols == 4) {
    if (left == 2) some(Width<2>{}, n);
    if (left == 3) some(Width<3>{}, n);
  }
}

template <bool Accumulate, class T>
inline void product(const float* a, std::int64_t lda, const T* b, std::int64_t ldb, int depth,
                    float* c, std::int64_t ldc, int rows, int cols, const void* next = nullptr,
                    std::int64_t bytes = 0) {
  multiply(a, lda, b, ldb, depth, Accumulate, c, ldc, rows, cols, next, bytes);
}

}  // namespace
