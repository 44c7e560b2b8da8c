// SPDX-License-Identifier: Apache-2.0
// Rows of codes for one token. They become weights in registers, many rows at a time: what is read
// beside them, x or the sums of the columns, is read once for all.
#pragma once
#include "ahead.inl.h"
#include "finish.inl.h"

namespace {

// Blocks of one group that a step takes of each rank row, where a group is as long.
constexpr int kStep = 2;

inline int step_of(std::int64_t at, std::int64_t group) {
  return (at | group) % (kStep * kBlock) ? 1 : kStep;
}

// What lies at p is read when it is needed: for want of registers a compiler would move it to
// vector registers and back, at the cost of a multiply-add each time.
template <class T>
inline void stay(T& p) {
  asm("" : "+r"(p));
}

// Lines that are on their way wait in the second cache: the first is too small for them.
template <int N>
inline void later(const char* coming, int i, int lines) {
  for (int line = i; line < lines; line += N) __builtin_prefetch(coming + 64 * line, 0, 2);
}

// sums[N] = x . rows of codes, over the whole depth. A function of its own: amid others its
// addresses would wait in memory.
template <int N, int Step, class P, class X>
__attribute__((noinline)) void code_dots(const P* const* rows, const float* const* scales,
                                         const X* x, std::int64_t depth, std::int64_t group,
                                         Ahead& next, F* sums) {
  constexpr int kLines = lines_of<N, P, Step>;
  constexpr std::int64_t kBytes = kBlock * kBits<P> / 8;
  Run weights_run = next.weights.now, beside_run = next.beside.now;
  F acc[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) acc[i] = zero();
  std::int64_t c = 0, g = 0;
  for (std::int64_t k = 0, stop = group; k < depth; k += Step * kBlock, c += Step * kBytes) {
    if (k == stop) {
      ++g;
      stop += group;
    }
    stay(rows);
    stay(scales);
    const char* coming = lines(next.weights, weights_run, kLines);
    const char* beside = lines(next.beside, beside_run, Step);
    for (int b = 0; b < Step; ++b) nearer(beside + 64 * b);
    F xs[Step * kPer];
    for (int j = 0; j < Step * kPer; ++j) xs[j] = load(x + k + j * kW);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      const P* row = rows[i] + c;
      later<N>(coming, i, kLines);
      const Unit unit = unit_of(row, scales[i][g]);
      for (int b = 0; b < Step; ++b) {
        F w[kPer];
        weights(row + b * kBytes, unit, w);
        for (int j = 0; j < kPer; ++j) acc[i] = fma(xs[b * kPer + j], w[j], acc[i]);
      }
    }
  }
  next.weights.now = weights_run;
  next.beside.now = beside_run;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) sums[i] = acc[i];
}

// Sums of columns for one token: whether they begin with these rank rows, and whether they end so
// that they go to y.
struct Columns {
  float* sums;
  bool begin, end;
  void* y;
  std::int64_t y_at;
  int dtype;
};

constexpr float kNothing[kStep * kBlock] = {};

// Columns (+)= c[0:N] rows[0:N][at:at + n] of codes, in whole steps.
template <int N, int Step, class P>
__attribute__((noinline)) void add_codes(const float* c, const P* const* rows,
                                         const float* const* scales, std::int64_t group,
                                         std::int64_t at, std::int64_t n, const Columns& to,
                                         Ahead& next) {
  constexpr int kLines = lines_of<N, P, Step>;
  constexpr std::int64_t kBytes = kBlock * kBits<P> / 8;
  Run weights_run = next.weights.now, beside_run = next.beside.now;
  F by[N];
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) by[r] = set1(c[r]);
  const float* before = to.begin ? kNothing : to.sums;
  const std::int64_t along = to.begin ? 0 : Step * kBlock;
  std::int64_t g = group_of(at, group), from = at / kBlock * kBytes;
  std::int64_t stop = (g + 1) * group - at;
  for (std::int64_t i = 0; i < n; i += Step * kBlock, from += Step * kBytes, before += along) {
    if (i == stop) {
      ++g;
      stop += group;
    }
    stay(rows);
    stay(scales);
    const char* coming = lines(next.weights, weights_run, kLines);
    const char* beside = lines(next.beside, beside_run, Step);
    for (int b = 0; b < Step; ++b) nearer(beside + 64 * b);
    F sums[Step * kPer];
    for (int j = 0; j < Step * kPer; ++j) sums[j] = load(before + j * kW);
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) {
      const P* row = rows[r] + from;
      later<N>(coming, r, kLines);
      const Unit unit = unit_of(row, scales[r][g]);
      for (int b = 0; b < Step; ++b) {
        F w[kPer];
        weights(row + b * kBytes, unit, w);
        for (int j = 0; j < kPer; ++j) sums[b * kPer + j] = fma(by[r], w[j], sums[b * kPer + j]);
      }
    }
    if (to.end) {
      add_sums<Step * kPer>(to.y, to.y_at + i, to.dtype, sums);
    } else {
      for (int j = 0; j < Step * kPer; ++j) store(to.sums + i + j * kW, sums[j]);
    }
  }
  next.weights.now = weights_run;
  next.beside.now = beside_run;
}

}  // namespace
