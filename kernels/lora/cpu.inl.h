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
#include "finish.inl.h"
#include "pairs.inl.h"

namespace {

using headrace::kLoraPanel;
using headrace::kLoraTogether;

// acc[M][N] += x[M][0:n] . a[N][0:n], lane by lane. Meanwhile what lies at `ahead` comes nearer.
// A function of its own: amid others its addresses would wait in memory.
template <int M, int N, class L, class T>
__attribute__((noinline)) void dots(const typename L::Packed* x, const T* const* a, std::int64_t n,
                                    float* sums, const char* const* ahead) {
  constexpr int kWhole = kChunk<typename L::Packed>;
  F acc[M][N];
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < N; ++i) acc[m][i] = load(sums + (m * N + i) * kW);
  }
  std::int64_t k = 0;
  for (; k + L::width <= n; k += L::width) {
    typename L::Vector xs[M];
    for (int m = 0; m < M; ++m) xs[m] = L::read(x + m * kWhole + k);
    for (int i = 0; i < 2; ++i) __builtin_prefetch(ahead[i] + k * sizeof(xs[0]) / L::width, 0, 2);
    for (int i = 0; i < N; ++i) {
      const auto w = L::read(a[i] + k);
      for (int m = 0; m < M; ++m) acc[m][i] = L::add(xs[m], w, acc[m][i]);
    }
  }
  for (int i = 0; k < n && i < N; ++i) {
    const Tail<L, T> tail(a[i] + k, static_cast<int>(n - k));
    const auto w = L::read(tail.lanes);
    for (int m = 0; m < M; ++m) acc[m][i] = L::add(L::read(x + m * kWhole + k), w, acc[m][i]);
  }
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < N; ++i) store(sums + (m * N + i) * kW, acc[m][i]);
  }
}

// Elements [k, k + n) of N rank rows, as they are multiplied.
template <int N, class P, class T>
inline void chunk_rows(const LoraArgs& a, const LoraBlock& b, int first, std::int64_t k,
                       std::int64_t n, float* wide, const T** rows) {
  for (int i = 0; i < N; ++i) {
    const int slice = slice_of(b, first + i);
    const P* row = a_row<P>(a, b.rank_rows[first + i], slice);
    if constexpr (kCodes<P>) {
      rows[i] = wide + i * kChunk<float>;
      widen_codes(row, a_scales(a, b.rank_rows[first + i], slice), a.a_group, k, n,
                  wide + i * kChunk<float>);
    } else {
      rows[i] = row + k;
    }
  }
}

// A chunk of x meets all rank rows of a panel while the first-level cache holds it; sums wait in
// the second.
template <class P>
inline void shrink_panel(const LoraArgs& a, const LoraBlock& b, int first, int last,
                         float* scratch) {
  using T = std::conditional_t<kCodes<P>, float, P>;
  constexpr int kWhole = kChunk<Packed<P>>;
  auto* xs = reinterpret_cast<Packed<P>*>(scratch);  // [kLoraTogether][kWhole]
  float* wide = scratch + kLoraTogether * kChunk<float>;
  float* all_sums = wide + kLoraRanks * kChunk<float>;
  const auto sums = [&](int r) { return all_sums + (r - first) * b.count * kW; };
  memset(all_sums, 0, sizeof(float) * (last - first) * b.count * kW);
  for (std::int64_t k = 0; k < a.depth; k += kWhole) {
    const std::int64_t n = a.depth - k < kWhole ? a.depth - k : kWhole;
    for (int from = 0; from < b.count; from += kLoraTogether) {
      const int count = b.count - from < kLoraTogether ? b.count - from : kLoraTogether;
      for (int m = 0; m < count; ++m) {
        take_any(a.x, b.tokens[from + m] * a.x_row + k, n, a.x_dtype, xs + m * kWhole);
      }
      // The rows of x that are taken next, two a block.
      const bool same = from + kLoraTogether < b.count;
      int token = same ? from + kLoraTogether : 0;
      const std::int64_t next = same ? k : k + n < a.depth ? k + n : 0;
      in_groups(first, last, [&](int r, auto width) {
        constexpr int N = decltype(width)::value;
        const T* rows[N];
        chunk_rows<N, P>(a, b, r, k, n, wide, rows);
        in_rows<kRows>(0, count, [&](int m, auto block) {
          const char* ahead[2];
          for (int i = 0; i < 2; ++i, token += token + 1 < b.count) {
            ahead[i] = at_row(a.x, b.tokens[token] * a.x_row + next, a.x_dtype);
          }
          dots<decltype(block)::value, N, LanesOf<P>>(xs + m * kWhole, rows, n,
                                                      sums(r) + (from + m) * N * kW, ahead);
        });
      });
    }
  }
  const int all = b.starts[a.slices];
  in_groups(first, last, [&](int r, auto width) {
    constexpr int N = decltype(width)::value;
    for (int m = 0; m < b.count; ++m) {
      F lanes[N];
      float dot[4];
      for (int i = 0; i < N; ++i) lanes[i] = load(sums(r) + (m * N + i) * kW);
      if constexpr (N == 4) {
        hsum4(lanes, dot);
      } else {
        for (int i = 0; i < N; ++i) dot[i] = hsum(lanes[i]);
      }
      for (int i = 0; i < N; ++i) {
        b.bridge[m * all + r + i] = dot[i] * b.factors[m * b.width + b.adapter[r + i]];
      }
    }
  });
}

template <class P>
inline void shrink_of(const LoraArgs& a, const LoraBlock& b, int first, int last, float* scratch) {
  if (b.count < kM && (!kCodes<P> || a.a_group % kBlock == 0)) {
    return shrink_few<P>(a, b, first, last, scratch);
  }
  for (int r = first; r < last; r += kLoraPanel) {
    shrink_panel<P>(a, b, r, last - r < kLoraPanel ? last : r + kLoraPanel, scratch);
  }
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
#ifdef HEADRACE_DOTS
    if constexpr (std::is_same_v<P, paired>) {
      expand_pairs(a, b, start, depth, lo, hi, scratch);
      continue;
    }
#endif
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
#ifdef HEADRACE_DOTS
      if (a.x_dtype == headrace::kBF16) return shrink_of<paired>(a, b, first, last, scratch);
#endif
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
#ifdef HEADRACE_DOTS
      if (a.x_dtype == headrace::kBF16) return expand_of<paired>(a, b, first, last, scratch);
#endif
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
