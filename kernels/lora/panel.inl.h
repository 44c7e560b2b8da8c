// SPDX-License-Identifier: Apache-2.0
// The first half for blocks of many tokens: multiply-adds set the pace, and what the inner loops
// read most lies in the first-level cache.
#pragma once
#include <string.h>

#include <utility>

#include "codes.inl.h"
#include "few.inl.h"

namespace {

using headrace::kLoraTogether;
using headrace::kLoraWidened;

// How rank rows of A are multiplied, and how many of them with how many tokens.
template <class P>
struct Meeting {
  using Weight = std::conditional_t<kCodes<P>, float, P>;
  using Lanes = LanesOf<Weight>;
  static constexpr int kTokens = 6;
  static constexpr int kRanks = F::registers == 32 ? 4 : 2;
};
#ifdef HEADRACE_DOTS
template <>
struct Meeting<paired> {
  using Weight = paired;
  using Lanes = LanesOf<paired>;
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
      const auto w = L::part(a[i] + k, n - k);
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
__attribute__((noinline)) void bridge_of(const LoraArgs& a, const LoraBlock& b, int first, int last,
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

// dots<M, N> for all M and N: with that much code in it a loop would be compiled for each.
template <class L, class T>
using Dots = void (*)(const typename L::Packed*, const T* const*, std::int64_t, float*,
                      std::int64_t, const char* const*, std::int64_t);
template <class L, class T, int Ranks, int... I>
inline Dots<L, T> dots_of(int tokens, int ranks, std::integer_sequence<int, I...>) {
  static constexpr Dots<L, T> all[] = {dots<I / Ranks + 1, I % Ranks + 1, L, T>...};
  return all[(tokens - 1) * Ranks + ranks - 1];
}

// Elements [begin, end) of x meet `ranks` rank rows from `begin` on: a chunk of kLoraTogether
// tokens at a time, so that the first-level cache holds it.
template <class Meets>
__attribute__((noinline)) void panel_chunks(const LoraArgs& a, const LoraBlock& b, int ranks,
                                            std::int64_t begin, std::int64_t end,
                                            const typename Meets::Weight* const* rows,
                                            typename Meets::Lanes::Packed* xs, float* sums) {
  constexpr int kWhole = kChunk<typename Meets::Lanes::Packed>;
  const std::int64_t step = Meets::Lanes::width * headrace::dtype_size(a.x_dtype);
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
      for (int r = 0, some; r < ranks; r += some) {
        some = ranks - r < Meets::kRanks ? ranks - r : Meets::kRanks;
        const typename Meets::Weight* at[Meets::kRanks];
        for (int i = 0; i < some; ++i) at[i] = rows[r + i] + (k - begin);
        for (int m = 0, block; m < count; m += block) {
          block = count - m < Meets::kTokens ? count - m : Meets::kTokens;
          const char* ahead[2];
          for (int i = 0; i < 2; ++i, token += token + 1 < b.count) {
            ahead[i] = at_row(a.x, b.tokens[token] * a.x_row + next, a.x_dtype);
          }
          const auto call = dots_of<typename Meets::Lanes, typename Meets::Weight, Meets::kRanks>(
              block, some, std::make_integer_sequence<int, Meets::kTokens * Meets::kRanks>{});
          call(xs + m * kWhole, at, n, sums + ((from + m) * ranks + r) * kW, ranks * kW, ahead,
               step);
        }
      }
    }
  }
}

// All rank rows of a panel; sums, and codes that became floats, wait in the second-level cache.
template <class P>
inline void shrink_panel(const LoraArgs& a, const LoraBlock& b, int first, int last,
                         float* scratch) {
  using Meets = Meeting<P>;
  using Lane = std::conditional_t<kCodes<P>, float, P>;
  constexpr int kWhole = kChunk<Packed<P>>;
  const int ranks = last - first;
  const bool shared = kCodes<P> && b.count > kLoraTogether;
  const std::int64_t room = shared ? kLoraWidened / ranks / kWhole * kWhole : kWhole;
  auto* xs = reinterpret_cast<Packed<P>*>(scratch);                  // [kLoraTogether][kWhole]
  float* sums = scratch + kLoraTogether * headrace::kLoraChunk / 4;  // [count][ranks][kW]
  float* wide = sums + b.count * ranks * kW;                         // [ranks][room]
  const typename Meets::Weight* rows[headrace::kLoraPanel];
  memset(sums, 0, sizeof(float) * b.count * ranks * kW);
  for (std::int64_t begin = 0; begin < a.depth; begin += room) {
    const std::int64_t end = a.depth - begin < room ? a.depth : begin + room;
    segment_rows<P>(a, b, first, last, begin, end - begin, wide, room, rows);
    panel_chunks<Meeting<Lane>>(a, b, ranks, begin, end, rows, xs, sums);
  }
  bridge_of(a, b, first, last, sums);
}

}  // namespace
