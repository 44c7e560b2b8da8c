// SPDX-License-Identifier: Apache-2.0
// Blocks of too few tokens to share a weight that was widened: memory sets the pace. Weights go
// from memory into the sums, codes by way of registers, and while a group of rank rows is at work
// the one that is read next comes nearer, in the order in which it lies: memory is fast in long
// runs. The sums are those of cpu.inl.h, in the same order.
#pragma once
#include "codes.inl.h"

namespace {

using headrace::kLoraRanks;
using headrace::LoraArgs;
using headrace::LoraBlock;

constexpr int kStrip = 4096;  // columns of whole rows at a time
constexpr int kFew = 4;       // tokens, no fewer than a block here has

template <class P>
constexpr int kBits = std::is_same_v<P, i4> ? 4 : 8 * static_cast<int>(sizeof(P));

// Lines of a block of each of N rows, no fewer than one.
template <int N, class P>
constexpr int lines_of = (N * kBits<P> * kBlock / 8 + 63) / 64;

inline void nearer(const char* p) { __builtin_prefetch(p, 0, 3); }

constexpr char kNowhere[64] = {};

// Stretches of memory, one after the other, and how far they are on their way.
template <int Most>
struct Stretches {
  const char* from[Most] = {kNowhere};
  std::int64_t bytes[Most] = {};
  std::int64_t done = 0;
  int count = 0, at = 0;

  void add(const void* p, std::int64_t n) {
    from[count] = static_cast<const char*>(p);
    bytes[count++] = n;
  }
  // The next n lines of 64 bytes; behind the last come lines that were named before.
  const char* lines(int n) {
    const char* p = from[at] + done;
    done += 64 * n;
    if (done >= bytes[at]) {
      done = 0;
      at += at + 1 < count;
    }
    return p;
  }
};

// What will be read next: weights, as many lines as are read meanwhile, and a line a block of
// scales and of rows of x or y.
struct Ahead {
  Stretches<kLoraRanks> weights;
  Stretches<kLoraRanks + 1> beside;
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
inline int slice_of(const LoraBlock& b, int r) {
  int slice = 0;
  while (r >= b.starts[slice + 1]) ++slice;
  return slice;
}
// Rank rows that are taken together where `left` are left: the group at work and the one on its way
// share the first cache. No pair is torn.
inline int together(int left) { return left >= kLoraRanks ? kLoraRanks : left >= 2 ? 2 : 1; }

// body(r, width) for all groups of [first, last), `width` a constant.
template <class Body>
inline void in_groups(int first, int last, const Body& body) {
  for (int r = first; r < last; r += together(last - r)) {
    const int n = together(last - r);
    if (n == kLoraRanks) body(r, std::integral_constant<int, kLoraRanks>{});
    if (n == 2) body(r, std::integral_constant<int, 2>{});
    if (n == 1) body(r, std::integral_constant<int, 1>{});
  }
}

// Rank rows of A from r on.
template <class P>
inline void ahead_of_a(const LoraArgs& a, const LoraBlock& b, int r, int last, Ahead& next) {
  const int n = together(last - r);
  for (int i = 0; i < n; ++i) {
    next.weights.add(a_row<P>(a, b.rank_rows[r + i], slice_of(b, r + i)), a.depth * kBits<P> / 8);
  }
  if constexpr (kCodes<P>) {
    for (int i = 0; i < n; ++i) {
      next.beside.add(a_scales(a, b.rank_rows[r + i], slice_of(b, r + i)), a.depth / a.a_group * 4);
    }
  }
}

// Columns [at, at + n) of rank rows of B from r on.
template <class P>
inline void ahead_of_b(const LoraArgs& a, const LoraBlock& b, int r, int last, std::int64_t at,
                       std::int64_t n, Ahead& next) {
  if (a.b_col != 1) return;
  const int rows = together(last - r);
  for (int i = 0; i < rows; ++i) {
    const std::int64_t bits = at * kBits<P>;
    const auto* row = reinterpret_cast<const char*>(b_row<P>(a, b.rank_rows[r + i]));
    next.weights.add(row + bits / 8, n * kBits<P> / 8);
  }
  if constexpr (kCodes<P>) {
    for (int i = 0; i < rows; ++i) {
      next.beside.add(b_scales(a, b.rank_rows[r + i]) + at / a.b_group, n / a.b_group * 4);
    }
  }
}

inline void beside_row(const LoraArgs& a, const void* of, std::int64_t at, std::int64_t n,
                       Ahead& next) {
  const int size = headrace::dtype_size(a.x_dtype);
  next.beside.add(static_cast<const char*>(of) + at * size, n * size);
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

// sums[N] = x . rows of A, over the whole depth.
template <int N, class P>
inline void whole_dots(const LoraArgs& a, const P* const* rows, const float* const* scales,
                       const Packed<P>* x, Ahead& next, F* sums) {
  constexpr int kLines = lines_of<N, P>;
  F acc[N];
  for (int i = 0; i < N; ++i) acc[i] = zero();
  if constexpr (kCodes<P>) {
    for (std::int64_t k = 0, g = 0; k < a.depth; ++g) {
      Unit units[N];
      for (int i = 0; i < N; ++i) units[i] = unit_of(rows[i], scales[i][g]);
      for (const std::int64_t stop = k + a.a_group; k < stop; k += kBlock) {
        const char* coming = next.weights.lines(kLines);
        nearer(next.beside.lines(1));
        F xs[kPer];
        for (int j = 0; j < kPer; ++j) xs[j] = load(x + k + j * kW);
        for (int i = 0; i < N; ++i) {
          if (i < kLines) nearer(coming + 64 * i);
          F w[kPer];
          weights(codes_at(rows[i], k), units[i], w);
          for (int j = 0; j < kPer; ++j) acc[i] = fma(xs[j], w[j], acc[i]);
        }
      }
    }
  } else {
    using L = LanesOf<P>;
    std::int64_t k = 0;
    for (; k + kBlock <= a.depth; k += kBlock) {
      const char* coming = next.weights.lines(kLines);
      nearer(next.beside.lines(1));
      constexpr int kSteps = kBlock / L::width;
      typename L::Vector xs[kSteps];
      for (int j = 0; j < kSteps; ++j) xs[j] = L::read(x + k + j * L::width);
      for (int i = 0; i < N; ++i) {
        for (int line = i; line < kLines; line += N) nearer(coming + 64 * line);
        for (int j = 0; j < kSteps; ++j) {
          acc[i] = L::add(xs[j], L::read(rows[i] + k + j * L::width), acc[i]);
        }
      }
    }
    for (; k + L::width <= a.depth; k += L::width) {
      for (int i = 0; i < N; ++i) acc[i] = L::add(L::read(x + k), L::read(rows[i] + k), acc[i]);
    }
    for (int i = 0; k < a.depth && i < N; ++i) {
      const Tail<L, P> tail(rows[i] + k, static_cast<int>(a.depth - k));
      acc[i] = L::add(L::read(x + k), L::read(tail.lanes), acc[i]);
    }
  }
  for (int i = 0; i < N; ++i) sums[i] = acc[i];
}

template <int N, class P>
inline void shrink_whole(const LoraArgs& a, const LoraBlock& b, int r, const Packed<P>* xs,
                         std::int64_t x_row, Ahead& next) {
  const P* rows[N];
  const float* scales[N] = {};
  for (int i = 0; i < N; ++i) {
    const int slice = slice_of(b, r + i);
    rows[i] = a_row<P>(a, b.rank_rows[r + i], slice);
    if constexpr (kCodes<P>) scales[i] = a_scales(a, b.rank_rows[r + i], slice);
  }
  const int all = b.starts[a.slices];
  for (int m = 0; m < b.count; ++m) {
    F sums[N];
    whole_dots<N>(a, rows, scales, xs + m * x_row, next, sums);
    for (int i = 0; i < N; ++i) {
      b.bridge[m * all + r + i] = hsum(sums[i]) * b.factors[m * b.width + b.adapter[r + i]];
    }
  }
}

template <class P>
inline void shrink_few(const LoraArgs& a, const LoraBlock& b, int first, int last, float* scratch) {
  auto* xs = reinterpret_cast<Packed<P>*>(scratch);
  const std::int64_t x_row = padded(a.depth);
  for (int m = 0; m < b.count; ++m) {
    take_any(a.x, b.tokens[m] * a.x_row, a.depth, a.x_dtype, xs + m * x_row);
  }
  int token = 0;
  in_groups(first, last, [&](int r, auto width) {
    constexpr int n = decltype(width)::value;
    Ahead next;
    if (token < b.count) beside_row(a, a.y, b.tokens[token] * a.y_row, a.outputs, next);
    ++token;
    if (r + n < last) {
      ahead_of_a<P>(a, b, r + n, last, next);
    } else if (last == b.starts[a.slices]) {
      ahead_of_expand<P>(a, b, next);
    }
    shrink_whole<n, P>(a, b, r, xs, x_row, next);
  });
}

// What N rank rows are multiplied by.
template <int N, class P>
struct Coefficients {
  explicit Coefficients(const float* c) {
    for (int r = 0; r < N; ++r) of[r] = set1(c[r]);
  }
  // into[Wide vectors] += the columns at `at`
  template <int Wide>
  void add(const P* const* rows, std::int64_t at, float* into) const {
    F sums[Wide];
    for (int j = 0; j < Wide; ++j) sums[j] = load(into + j * kW);
    for (int r = 0; r < N; ++r) {
      for (int j = 0; j < Wide; ++j) sums[j] = fma(of[r], load(rows[r] + at + j * kW), sums[j]);
    }
    for (int j = 0; j < Wide; ++j) store(into + j * kW, sums[j]);
  }
  F of[N];
};
#ifdef HEADRACE_DOTS
template <int N>
struct Coefficients<N, paired> {
  explicit Coefficients(const float* c) {
    float all[kW] = {};
    memcpy(all, c, sizeof(float) * N);
    bf16 terms[2][kW];
    split(load(all), terms[0], terms[1]);
    for (int p = 0; p < kPairs; ++p) {
      for (int t = 0; t < 2; ++t) of[p][t] = set1_pair(terms[t] + 2 * p);
    }
  }
  template <int Wide>
  void add(const paired* const* rows, std::int64_t at, float* into) const {
    F sums[Wide];  // woven where Wide is 2, see pair_rows
    for (int j = 0; j < Wide; ++j) sums[j] = load(into + j * kW);
    for (int p = 0; p < kPairs; ++p) {
      Pairs w[Wide];
      if constexpr (N > 1) {
        pair_rows<Wide>(rows[2 * p] + at, rows[2 * p + 1] + at, w);
      } else {
        pair_row<Wide>(rows[0] + at, w);
      }
      for (int t = 0; t < 2; ++t) {
        for (int j = 0; j < Wide; ++j) sums[j] = dot(of[p][t], w[j], sums[j]);
      }
    }
    for (int j = 0; j < Wide; ++j) store(into + j * kW, sums[j]);
  }
  static constexpr int kPairs = (N + 1) / 2;
  Pairs of[kPairs][2];
};
#endif

// into[0:n] += c[0:N] rows[0:N][at:at + n], for one token; n in whole vectors, codes in blocks.
template <int N, class P>
inline void along_rows(const LoraArgs& a, const float* c, const P* const* rows,
                       const float* const* scales, std::int64_t at, std::int64_t n, Ahead& next,
                       float* into) {
  constexpr int kLines = lines_of<N, P>;
  const Coefficients<N, P> x(c);
  if constexpr (kCodes<P>) {
    for (std::int64_t i = 0, g = at / a.b_group; i < n; ++g) {
      Unit units[N];
      for (int r = 0; r < N; ++r) units[r] = unit_of(rows[r], scales[r][g]);
      const std::int64_t whole = (g + 1) * a.b_group - at;
      for (const std::int64_t stop = whole < n ? whole : n; i < stop; i += kBlock) {
        const char* coming = next.weights.lines(kLines);
        nearer(next.beside.lines(1));
        F sums[kPer];
        for (int j = 0; j < kPer; ++j) sums[j] = load(into + i + j * kW);
        for (int r = 0; r < N; ++r) {
          if (r < kLines) nearer(coming + 64 * r);
          F w[kPer];
          weights(codes_at(rows[r], at + i), units[r], w);
          for (int j = 0; j < kPer; ++j) sums[j] = fma(x.of[r], w[j], sums[j]);
        }
        for (int j = 0; j < kPer; ++j) store(into + i + j * kW, sums[j]);
      }
    }
  } else {
    std::int64_t i = 0;
    for (; i + kBlock <= n; i += kBlock) {
      const char* coming = next.weights.lines(kLines);
      nearer(next.beside.lines(1));
      for (int line = 0; line < kLines; ++line) nearer(coming + 64 * line);
      x.template add<kPer>(rows, at + i, into + i);
    }
    for (; i < n; i += kW) x.template add<1>(rows, at + i, into + i);
  }
}

// The few columns behind whole vectors or blocks, widened first.
template <int N, class P>
inline void along_tail(const LoraArgs& a, const float* c, const P* const* rows,
                       const float* const* scales, std::int64_t at, int n, float* into) {
  using T = std::conditional_t<kCodes<P>, float, P>;
  T some[N][kBlock + kW] = {};
  const T* from[N];
  for (int r = 0; r < N; ++r) {
    from[r] = some[r];
    if constexpr (kCodes<P>) {
      widen_codes(rows[r], scales[r], a.b_group, at, n, some[r]);
    } else {
      memcpy(some[r], rows[r] + at, n * sizeof(T));
    }
  }
  const Coefficients<N, T> x(c);
  for (int i = 0; i < n; i += kW) x.template add<1>(from, i, into + i);
}

// Rank rows [r, r + N) of a strip of one slice.
template <int N, class P>
inline void strip_rows(const LoraArgs& a, const LoraBlock& b, int r, std::int64_t at, int n,
                       Ahead& next, float* acc) {
  const P* rows[N];
  const float* scales[N] = {};
  for (int i = 0; i < N; ++i) {
    rows[i] = b_row<P>(a, b.rank_rows[r + i]);
    if constexpr (kCodes<P>) scales[i] = b_scales(a, b.rank_rows[r + i]);
  }
  int main = n / kW * kW;
  if constexpr (kCodes<P>) {
    main = at % kBlock || a.b_group % kBlock ? 0 : n / kBlock * kBlock;
  }
  const int all = b.starts[a.slices];
  for (int m = 0; m < b.count; ++m) {
    const float* c = b.bridge + m * all + r;
    float* into = acc + m * kStrip;
    along_rows<N>(a, c, rows, scales, at, main, next, into);
    for (int i = main; i < n; i += kBlock) {
      along_tail<N>(a, c, rows, scales, at + i, n - i < kBlock ? n - i : kBlock, into + i);
    }
  }
}

// A strip of one slice: columns [at, at + n), of which `end` is the slice's last. Leaves the sums
// in acc, kStrip floats a token.
template <class P>
inline void expand_strip(const LoraArgs& a, const LoraBlock& b, int slice, std::int64_t at, int n,
                         std::int64_t end, float* acc) {
  for (int m = 0; m < b.count; ++m) memset(acc + m * kStrip, 0, sizeof(float) * padded(n));
  const int last = b.starts[slice + 1];
  int token = at == 0 && b.next ? 0 : kFew;
  in_groups(b.starts[slice], last, [&](int r, auto width) {
    constexpr int rows = decltype(width)::value;
    Ahead next;
    if (token < kFew && token < b.next->count) {
      beside_row(a, a.x, b.next->tokens[token] * a.x_row, a.depth, next);
    }
    ++token;
    if (r + rows < last) {
      ahead_of_b<P>(a, b, r + rows, last, at, n, next);
    } else if (at + n < end) {
      const std::int64_t more = end - at - n;
      ahead_of_b<P>(a, b, b.starts[slice], last, at + n, more < kStrip ? more : kStrip, next);
    } else if (b.next && end == a.outputs && b.next->starts[a.slices] > 0) {
      ahead_of_a<P>(a, *b.next, 0, b.next->starts[a.slices], next);
    }
    strip_rows<rows, P>(a, b, r, at, n, next, acc);
  });
#ifdef HEADRACE_DOTS
  if constexpr (std::is_same_v<P, paired>) {
    for (int m = 0; m < b.count; ++m) {
      for (float* sums = acc + m * kStrip; sums + kBlock <= acc + m * kStrip + n; sums += kBlock) {
        F lanes[kPer] = {load(sums), load(sums + kW)};
        unweave<kPer>(lanes);
        for (int j = 0; j < kPer; ++j) store(sums + j * kW, lanes[j]);
      }
    }
  }
#endif
}

}  // namespace
