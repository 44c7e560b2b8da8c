// SPDX-License-Identifier: Apache-2.0
// What blocks of few tokens read next comes nearer while they are at work, in the order in which it
// lies: memory is fast in long runs.
#pragma once
#include "args.h"
#include "codes.inl.h"

namespace {

using headrace::kLoraRanks;
using headrace::LoraArgs;
using headrace::LoraBlock;

constexpr int kStrip = 4096;  // columns of whole rows at a time
constexpr int kFew = 4;       // tokens, no fewer than a block here has

template <class P>
constexpr int kBits = std::is_same_v<P, i4> ? 4 : 8 * static_cast<int>(sizeof(P));

// Lines of `Blocks` blocks of each of N rows, no fewer than one.
template <int N, class P, int Blocks = 1>
constexpr int lines_of = (N * Blocks * kBits<P> * kBlock / 8 + 63) / 64;

inline void nearer(const char* p) { __builtin_prefetch(p, 0, 3); }

constexpr char kNowhere[64] = {};

// A run of lines of 64 bytes, and where it ends.
struct Run {
  const char *at, *end;
};

// Runs of memory, one after the other. Neighbours are one run.
template <int Most>
struct Runs {
  Run of[Most];  // the first `count`
  Run now = {kNowhere, kNowhere + 1};
  int count = 0, at = 0;

  Runs() { of[0] = now; }

  // Rows [0, rows) of n bytes each, row(i) where one begins.
  template <class Row>
  void add(int rows, std::int64_t n, const Row& row) {
    for (int i = 0; i < rows;) {
      const auto* from = reinterpret_cast<const char*>(row(i));
      const char* end = from;
      do {
        end += n;
      } while (++i < rows && reinterpret_cast<const char*>(row(i)) == end);
      of[count++] = {from, end};
    }
    now = of[0];
  }
  // Behind the last run it comes again.
  Run turn() {
    at += at + 1 < count;
    return of[at];
  }
};

// The next n lines; `now` stays in registers.
template <int Most>
inline const char* lines(Runs<Most>& runs, Run& now, int n) {
  const char* p = now.at;
  now.at += 64 * n;
  if (__builtin_expect(now.at >= now.end, 0)) now = runs.turn();
  return p;
}

// Rank rows that are taken together, at most: the group at work and the one on its way are small
// beside the second cache, and their sums stay in registers.
template <class P>
constexpr int kTaken = std::is_same_v<P, i4> && F::registers == 32 ? 16 : kLoraRanks;
constexpr int kTakenMost = 16;

// What will be read next: weights, as many lines as are read meanwhile, and a line a block of
// scales and of rows of x or y.
struct Ahead {
  Runs<kTakenMost> weights;
  Runs<kTakenMost + kFew> beside;
};

template <class P>
inline const P* a_row(const LoraArgs& a, std::int64_t row, int slice) {
  return static_cast<const P*>(a.a) + row * a.a_row + slice * a.a_slice;
}
inline const float* a_scales(const LoraArgs& a, std::int64_t row, int slice) {
  return a.a_scale + (row * a.slices + slice) * a.a_groups;
}
template <class P>
inline const P* b_row(const LoraArgs& a, std::int64_t row) {
  const P* b = static_cast<const P*>(a.b);
  if (a.b_ranks == 1) return b + row * a.b_slot;  // a division a row would show
  return b + row / a.b_ranks * a.b_slot + row % a.b_ranks * a.b_rank;
}
inline const float* b_scales(const LoraArgs& a, std::int64_t row) {
  return a.b_scale + row * a.b_groups;
}
// A division of 64 bits takes as long as a hundred products.
inline std::int64_t group_of(std::int64_t at, std::int64_t group) {
  return static_cast<std::uint32_t>(at) / static_cast<std::uint32_t>(group);
}
inline int slice_of(const LoraBlock& b, int r) {
  int slice = 0;
  while (r >= b.starts[slice + 1]) ++slice;
  return slice;
}
// Of `left` rows. No pair is torn.
template <class P>
inline int together(int left) {
  int n = kTaken<P>;
  while (n > left) n /= 2;
  return n;
}

template <class P>
inline int passes_of(int ranks) {
  return (ranks + kTaken<P> - 1) / kTaken<P>;
}

// body(r, width) for all groups of [first, last), `width` a constant.
template <class P, int Most = kTaken<P>, class Body>
inline void in_groups(int first, int last, const Body& body) {
  int r = first;
  for (; r + Most <= last; r += Most) body(r, std::integral_constant<int, Most>{});
  if constexpr (Most > 1) in_groups<P, Most / 2>(r, last, body);
}

// Rank rows of A from r on.
template <class P>
__attribute__((noinline)) void ahead_of_a(const LoraArgs& a, const LoraBlock& b, int r, int last,
                                          Ahead& next) {
  const int n = together<P>(last - r);
  next.weights.add(n, a.depth * kBits<P> / 8,
                   [&](int i) { return a_row<P>(a, b.rank_rows[r + i], slice_of(b, r + i)); });
  if constexpr (kCodes<P>) {
    next.beside.add(n, a.a_groups * 4,
                    [&](int i) { return a_scales(a, b.rank_rows[r + i], slice_of(b, r + i)); });
  }
}

// Columns [at, at + n) of rank rows of B from r on.
template <class P>
__attribute__((noinline)) void ahead_of_b(const LoraArgs& a, const LoraBlock& b, int r, int last,
                                          std::int64_t at, std::int64_t n, Ahead& next) {
  if (a.b_col != 1) return;
  const int rows = together<P>(last - r);
  const std::int64_t before = at * kBits<P> / 8;
  next.weights.add(rows, n * kBits<P> / 8, [&](int i) {
    return reinterpret_cast<const char*>(b_row<P>(a, b.rank_rows[r + i])) + before;
  });
  if constexpr (kCodes<P>) {
    const std::int64_t first = group_of(at, a.b_group), groups = group_of(n, a.b_group);
    next.beside.add(rows, groups * 4,
                    [&](int i) { return b_scales(a, b.rank_rows[r + i]) + first; });
  }
}

// Part `pass` of `passes` of rows of x or y, n elements each; a block of many tokens waits for
// most.
__attribute__((noinline)) void beside_rows(const LoraArgs& a, const LoraBlock& b, const void* of,
                                           std::int64_t row, std::int64_t n, int pass, int passes,
                                           Ahead& next) {
  const int size = headrace::dtype_size(a.x_dtype);
  const std::int64_t part = (n * size / passes + 63) / 64 * 64, at = pass * part;
  const std::int64_t some = n * size - at < part ? n * size - at : part;
  if (some <= 0) return;
  next.beside.add(b.count < kFew ? b.count : kFew, some, [&](int m) {
    return static_cast<const char*>(of) + b.tokens[m] * row * size + at;
  });
}

// The first of B that a block reads.
template <class P>
inline void ahead_of_expand(const LoraArgs& a, const LoraBlock& b, Ahead& next) {
  std::int64_t begin = 0;
  for (int slice = 0; slice < a.slices; begin = b.ends[slice++]) {
    const std::int64_t n = b.ends[slice] - begin;
    if (n == 0 || b.starts[slice] == b.starts[slice + 1]) continue;
    return ahead_of_b<P>(a, b, b.starts[slice], b.starts[slice + 1], begin, n < kStrip ? n : kStrip,
                         next);
  }
}

}  // namespace
