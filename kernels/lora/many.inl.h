// SPDX-License-Identifier: Apache-2.0
// Blocks of many tokens: multiply-adds set the pace. Codes and columns of B become floats once for
// all tokens of a block, and what the inner loops read most lies in the first-level cache.
#pragma once
#include <string.h>

#include "few.inl.h"
#include "finish.inl.h"
#include "pairs.inl.h"

namespace {

using headrace::kLoraTogether;
using headrace::kLoraWidened;

// How rank rows of A are multiplied, and how many of them with how many tokens.
template <class P>
struct Meeting {
  using Weight = std::conditional_t<kCodes<P>, float, P>;
  static constexpr int kTokens = 6;
  static constexpr int kRanks = F::registers == 32 ? 4 : 2;
};
#ifdef HEADRACE_DOTS
template <>
struct Meeting<paired> {
  using Weight = paired;
  static constexpr int kTokens = kRows;
  static constexpr int kRanks = headrace::kLoraRanks;
};
#endif

// A vector that is multiplied several times is loaded once: a compiler that folds the load into
// every multiply-add makes loads the limit.
template <class V>
inline void hold(V& x) {
#if defined(HEADRACE_AVX512)
  asm("" : "+v"(x.v));
#elif defined(HEADRACE_AVX2)
  asm("" : "+x"(x.v));
#else
  static_cast<void>(x);
#endif
}

// sums[M][N] += x[M][0:n] . a[N][0:n], lane by lane. Meanwhile two rows of x come nearer, `step`
// bytes a vector. A function of its own: amid others its addresses would wait in memory.
template <int M, int N, class L, class T>
__attribute__((noinline)) void dots(const typename L::Packed* x, const T* const* a, std::int64_t n,
                                    float* sums, std::int64_t sums_row, const char* const* ahead,
                                    std::int64_t step) {
  constexpr int kWhole = kChunk<typename L::Packed>;
  F acc[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < N; ++i) acc[m][i] = load(sums + m * sums_row + i * kW);
  }
  const char* soon[2] = {ahead[0], ahead[1]};
  std::int64_t k = 0;
  for (; k + L::width <= n; k += L::width) {
    typename L::Vector w[N];
    for (int i = 0; i < N; ++i) w[i] = L::read(a[i] + k);
    for (const char*& row : soon) {
      __builtin_prefetch(row, 0, 2);
      row += step;
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      auto xs = L::read(x + m * kWhole + k);
      hold(xs);
      for (int i = 0; i < N; ++i) acc[m][i] = L::add(xs, w[i], acc[m][i]);
    }
  }
  if (k < n) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const Tail<L, T> tail(a[i] + k, static_cast<int>(n - k));
      const auto w = L::read(tail.lanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) acc[m][i] = L::add(L::read(x + m * kWhole + k), w, acc[m][i]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < N; ++i) store(sums + m * sums_row + i * kW, acc[m][i]);
  }
}

// Elements [k, k + n) of rank rows [first, last) as they are multiplied, widened ones `room` apart.
template <class P>
inline void segment_rows(const LoraArgs& a, const LoraBlock& b, int first, int last, std::int64_t k,
                         std::int64_t n, float* wide, std::int64_t room,
                         const typename Meeting<P>::Weight** rows) {
  for (int r = first; r < last; ++r) {
    const int slice = slice_of(b, r);
    const P* row = a_row<P>(a, b.rank_rows[r], slice);
    if constexpr (kCodes<P>) {
      float* to = wide + (r - first) * room;
      widen_codes(row, a_scales(a, b.rank_rows[r], slice), a.a_group, k, n, to);
      rows[r - first] = to;
    } else {
      rows[r - first] = row + k;
    }
  }
}

// The bridge from the running sums of all tokens.
inline void bridge_of(const LoraArgs& a, const LoraBlock& b, int first, int last,
                      const float* sums) {
  const int all = b.starts[a.slices];
  for (int m = 0; m < b.count; ++m) {
    in_rows<4>(first, last, [&](int r, auto width) {
      constexpr int N = decltype(width)::value;
      F lanes[N];
      float dot[4];
      for (int i = 0; i < N; ++i, sums += kW) lanes[i] = load(sums);
      if constexpr (N == 4) {
        hsum4(lanes, dot);
      } else {
        for (int i = 0; i < N; ++i) dot[i] = hsum(lanes[i]);
      }
      for (int i = 0; i < N; ++i) {
        b.bridge[m * all + r + i] = dot[i] * b.factors[m * b.width + b.adapter[r + i]];
      }
    });
  }
}

// A chunk of x meets all rank rows of a panel while the first-level cache holds it; sums, and codes
// that became floats, wait in the second.
template <class P>
inline void shrink_panel(const LoraArgs& a, const LoraBlock& b, int first, int last,
                         float* scratch) {
  using Meets = Meeting<P>;
  using T = typename Meets::Weight;
  constexpr int kWhole = kChunk<Packed<P>>;
  const int ranks = last - first;
  const bool shared = kCodes<P> && b.count > kLoraTogether;
  const std::int64_t room = shared ? kLoraWidened / ranks / kWhole * kWhole : kWhole;
  auto* xs = reinterpret_cast<Packed<P>*>(scratch);                  // [kLoraTogether][kWhole]
  float* sums = scratch + kLoraTogether * headrace::kLoraChunk / 4;  // [count][ranks][kW]
  float* wide = sums + b.count * ranks * kW;                         // [ranks][room]
  const std::int64_t step = LanesOf<P>::width * headrace::dtype_size(a.x_dtype);
  const T* rows[headrace::kLoraPanel];
  memset(sums, 0, sizeof(float) * b.count * ranks * kW);
  for (std::int64_t begin = 0; begin < a.depth; begin += room) {
    const std::int64_t end = a.depth - begin < room ? a.depth : begin + room;
    segment_rows<P>(a, b, first, last, begin, end - begin, wide, room, rows);
    for (int from = 0; from < b.count; from += kLoraTogether) {
      const int count = b.count - from < kLoraTogether ? b.count - from : kLoraTogether;
      for (std::int64_t k = begin; k < end; k += kWhole) {
        const std::int64_t n = end - k < kWhole ? end - k : kWhole;
        for (int m = 0; m < count; ++m) {
          take_any(a.x, b.tokens[from + m] * a.x_row + k, n, a.x_dtype, xs + m * kWhole);
        }
        // The rows of x that are taken next, two a block.
        const bool along = k + n < end, across = from + kLoraTogether < b.count;
        int token = along ? from : across ? from + kLoraTogether : 0;
        const std::int64_t next = along ? k + n : across ? begin : end < a.depth ? end : 0;
        in_rows<Meets::kRanks>(0, ranks, [&](int r, auto width) {
          constexpr int N = decltype(width)::value;
          const T* at[N];
          for (int i = 0; i < N; ++i) at[i] = rows[r + i] + (k - begin);
          in_rows<Meets::kTokens>(0, count, [&](int m, auto block) {
            const char* ahead[2];
            for (int i = 0; i < 2; ++i, token += token + 1 < b.count) {
              ahead[i] = at_row(a.x, b.tokens[token] * a.x_row + next, a.x_dtype);
            }
            dots<decltype(block)::value, N, LanesOf<P>>(xs + m * kWhole, at, n,
                                                        sums + ((from + m) * ranks + r) * kW,
                                                        ranks * kW, ahead, step);
          });
        });
      }
    }
  }
  bridge_of(a, b, first, last, sums);
}

// into[M][kWide] (+)= c[M][0:depth] rows[0:depth][kWide]
template <int M>
inline void rank_rows(const float* c, std::int64_t c_row, const float* rows, std::int64_t row,
                      int depth, bool first, float* into) {
  F acc[M][kColumns];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      acc[m][n] = first ? zero() : load(into + m * kWide + n * kW);
    }
  }
  for (int r = 0; r < depth; ++r, rows += row) {
    F w[kColumns];
    for (int n = 0; n < kColumns; ++n) w[n] = load(rows + n * kW);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const F x = set1(c[m * c_row + r]);
#pragma GCC unroll 4
      for (int n = 0; n < kColumns; ++n) acc[m][n] = fma(x, w[n], acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < kColumns; ++n) store(into + m * kWide + n * kW, acc[m][n]);
  }
}

// A block of rank rows that lie side by side (B as it was trained), n columns in whole vectors.
template <class P>
inline void turn_columns(const P* base, std::int64_t b_col, int n, float* to, std::int64_t room) {
  for (int i = 0; i < n; i += kW) {
    F turned[kW];
    for (int j = 0; j < kW; ++j) turned[j] = load(base + (i + j) * b_col);
    transpose(turned);
    for (int j = 0; j < kW; ++j) store(to + j * room + i, turned[j]);
  }
}

// Columns [at, at + n) of rank rows [first, first + depth), `room` floats a row.
template <class P>
inline void widen_columns(const LoraArgs& a, const LoraBlock& b, int first, int depth,
                          std::int64_t at, int n, float* to, std::int64_t room) {
  for (int r = 0; r < depth; ++r) {
    const std::int64_t row = b.rank_rows[first + r];
    float* into = to + r * room;
    if constexpr (kCodes<P>) {
      widen_codes(b_row<P>(a, row), b_scales(a, row), a.b_group, at, n, into);
    } else {
      const P* base = b_row<P>(a, row) + at * a.b_col;
      const bool block = a.b_rank == 1 && r + kW <= depth && n % kW == 0 &&
                         b.rank_rows[first + r + kW - 1] - row == kW - 1 &&
                         row % a.b_ranks + kW <= a.b_ranks;
      if (a.b_col == 1) {
        widen(base, n, into);
      } else if (block) {
        turn_columns(base, a.b_col, n, into, room);
        r += kW - 1;
      } else {
        for (int i = 0; i < n; i += kW) {
          P lanes[kW] = {};
          for (int j = 0; j < kW && i + j < n; ++j) lanes[j] = base[(i + j) * a.b_col];
          store(into + i, load(lanes));
        }
      }
    }
  }
}

// A block of columns of y comes nearer, of `rows` tokens from m on: to the first cache, or only to
// the second.
template <bool First>
inline void y_nearer(const LoraArgs& a, const LoraBlock& b, int m, int rows, std::int64_t column) {
  for (int j = m; j < m + rows && j < b.count; ++j) {
    const char* y = at_row(a.y, b.tokens[j] * a.y_row + column, a.x_dtype);
    for (int at = 0; at < kWide * headrace::dtype_size(a.x_dtype); at += 64) {
      __builtin_prefetch(y + at, 0, First ? 3 : 2);
    }
  }
}

// Columns [first, last) of the slice whose rank rows begin at `start`.
template <class P>
inline void expand_many(const LoraArgs& a, const LoraBlock& b, int start, int depth,
                        std::int64_t first, std::int64_t last, float* scratch) {
#ifdef HEADRACE_DOTS
  if constexpr (std::is_same_v<P, paired>) {
    return expand_pairs(a, b, start, depth, first, last, scratch);
  }
#endif
  const int fit = depth ? kStripWords / depth / kWide * kWide : kWide;
  const int strip = fit < kWide ? kWide : fit > kStripMost ? kStripMost : fit;
  float* acc = scratch;                 // [count][kWide]
  float* wide = acc + b.count * kWide;  // [kDeep][strip]
  const int all = b.starts[a.slices];
  for (std::int64_t at = first; at < last; at += strip) {
    const int n = static_cast<int>(last - at < strip ? last - at : strip);
    int deep = 0;
    for (int r = 0; r == 0 || r < depth; r += deep) {
      deep = depth - r < kDeep ? depth - r : kDeep;
      const float* c = b.bridge + start + r;
      widen_columns<P>(a, b, start + r, deep, at, n, wide, strip);
      in_rows<kRows>(0, b.count, [&](int m, auto rows) {
        float* into = acc + (depth <= kDeep ? 0 : m * kWide);
        for (int i = 0; i < n; i += kWide) {
          // What is added to next: on the right, below, or at the top of the next strip.
          const bool right = i + kWide < n, below = m + rows < b.count;
          const int token = right ? m : below ? m + rows : 0;
          y_nearer<true>(a, b, token, rows, right ? at + i + kWide : below ? at : at + n);
          // Memory takes longer than a block: the tokens below, or the next strip of the first.
          y_nearer<false>(a, b, below ? m + rows : 0, rows, below ? at + i : at + n + i);
          rank_rows<rows>(c + m * all, all, wide + i, strip, deep, r == 0, into);
          if (r + deep < depth) continue;  // the sums wait for more rank rows
          finish(a, b, m, rows, at + i, n - i < kWide ? n - i : kWide, into, kWide);
        }
      });
      if (depth == 0) break;
    }
  }
}

}  // namespace
