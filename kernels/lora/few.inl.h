// SPDX-License-Identifier: Apache-2.0
// Blocks of too few tokens to share a weight that was widened: memory sets the pace. Weights go
// from memory into the sums, codes by way of registers, while those that are read next come nearer.
// The sums are those of many.inl.h, in the same order.
#pragma once
#include "ahead.inl.h"

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

// sums[N] = x . rows of codes, over the whole depth. A function of its own: amid others its
// addresses would wait in memory.
template <int N, int Step, class P>
__attribute__((noinline)) void code_dots(const P* const* rows, const float* const* scales,
                                         const float* x, std::int64_t depth, std::int64_t group,
                                         Ahead& next, F* sums) {
  constexpr int kLines = lines_of<N, P, Step>;
  constexpr std::int64_t kBytes = kBlock * kBits<P> / 8;
  Run weights_run = next.weights.now, beside_run = next.beside.now;
  F acc[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) acc[i] = zero();
  std::int64_t c = 0, g = 0;
  for (std::int64_t k = 0, stop = group; k < depth; k += Step * kBlock, c += Step * kBytes) {
    if (k == stop) {
      ++g;
      stop += group;
    }
    stay(scales);
    const char* coming = lines(next.weights, weights_run, kLines);
    const char* beside = lines(next.beside, beside_run, Step);
    for (int b = 0; b < Step; ++b) nearer(beside + 64 * b);
    F xs[Step * kPer];
    for (int j = 0; j < Step * kPer; ++j) xs[j] = load(x + k + j * kW);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      for (int line = i; line < kLines; line += N) nearer(coming + 64 * line);
      const Unit unit = unit_of(rows[i], scales[i][g]);
      for (int b = 0; b < Step; ++b) {
        F w[kPer];
        weights(rows[i] + c + b * kBytes, unit, w);
        for (int j = 0; j < kPer; ++j) acc[i] = fma(xs[b * kPer + j], w[j], acc[i]);
      }
    }
  }
  next.weights.now = weights_run;
  next.beside.now = beside_run;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) sums[i] = acc[i];
}

// sums[N] = x . rows of A, over the whole depth.
template <int N, class P>
inline void whole_dots(const LoraArgs& a, const P* const* rows, const float* const* scales,
                       const Packed<P>* x, Ahead& next, F* sums) {
  if constexpr (kCodes<P>) {
    if (step_of(0, a.a_group) == 1) {
      code_dots<N, 1>(rows, scales, x, a.depth, a.a_group, next, sums);
    } else {
      code_dots<N, kStep>(rows, scales, x, a.depth, a.a_group, next, sums);
    }
  } else {
    constexpr int kLines = lines_of<N, P>;
    Run weights_run = next.weights.now, beside_run = next.beside.now;
    F acc[N];
    for (int i = 0; i < N; ++i) acc[i] = zero();
    using L = LanesOf<P>;
    std::int64_t k = 0;
    for (; k + kBlock <= a.depth; k += kBlock) {
      const char* coming = lines(next.weights, weights_run, kLines);
      nearer(lines(next.beside, beside_run, 1));
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
    next.weights.now = weights_run;
    next.beside.now = beside_run;
    for (int i = 0; i < N; ++i) sums[i] = acc[i];
  }
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
  int pass = 0;
  in_groups<P>(first, last, [&](int r, auto width) {
    constexpr int n = decltype(width)::value;
    Ahead next;
    if (r + n < last) {
      ahead_of_a<P>(a, b, r + n, last, next);
    } else if (last == b.starts[a.slices]) {
      ahead_of_expand<P>(a, b, next);
    }
    beside_rows(a, b, a.y, a.y_row, a.outputs, pass++, passes_of<P>(last - first), next);
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

// into[0:n] += c[0:N] rows[0:N][at:at + n] of codes, in whole steps.
template <int N, int Step, class P>
__attribute__((noinline)) void add_codes(const float* c, const P* const* rows,
                                         const float* const* scales, std::int64_t group,
                                         std::int64_t at, std::int64_t n, Ahead& next,
                                         float* into) {
  constexpr int kLines = lines_of<N, P, Step>;
  constexpr std::int64_t kBytes = kBlock * kBits<P> / 8;
  Run weights_run = next.weights.now, beside_run = next.beside.now;
  const Coefficients<N, P> x(c);
  std::int64_t g = group_of(at, group), from = at / kBlock * kBytes;
  std::int64_t stop = (g + 1) * group - at;
  for (std::int64_t i = 0; i < n; i += Step * kBlock, from += Step * kBytes) {
    if (i == stop) {
      ++g;
      stop += group;
    }
    stay(scales);
    const char* coming = lines(next.weights, weights_run, kLines);
    const char* beside = lines(next.beside, beside_run, Step);
    for (int b = 0; b < Step; ++b) nearer(beside + 64 * b);
    F sums[Step * kPer];
    for (int j = 0; j < Step * kPer; ++j) sums[j] = load(into + i + j * kW);
#pragma GCC unroll 8
    for (int r = 0; r < N; ++r) {
      for (int line = r; line < kLines; line += N) nearer(coming + 64 * line);
      const Unit unit = unit_of(rows[r], scales[r][g]);
      for (int b = 0; b < Step; ++b) {
        F w[kPer];
        weights(rows[r] + from + b * kBytes, unit, w);
        for (int j = 0; j < kPer; ++j) {
          sums[b * kPer + j] = fma(x.of[r], w[j], sums[b * kPer + j]);
        }
      }
    }
    for (int j = 0; j < Step * kPer; ++j) store(into + i + j * kW, sums[j]);
  }
  next.weights.now = weights_run;
  next.beside.now = beside_run;
}

// into[0:n] += c[0:N] rows[0:N][at:at + n], for one token; n in whole vectors, codes in blocks.
template <int N, class P>
inline void along_rows(const LoraArgs& a, const float* c, const P* const* rows,
                       const float* const* scales, std::int64_t at, std::int64_t n, Ahead& next,
                       float* into) {
  if constexpr (kCodes<P>) {
    const std::int64_t wide =
        step_of(at, a.b_group) == 1 ? 0 : n / (kStep * kBlock) * kStep * kBlock;
    if (wide) add_codes<N, kStep>(c, rows, scales, a.b_group, at, wide, next, into);
    if (wide == n) return;
    add_codes<N, 1>(c, rows, scales, a.b_group, at + wide, n - wide, next, into + wide);
  } else {
    constexpr int kLines = lines_of<N, P>;
    Run weights_run = next.weights.now, beside_run = next.beside.now;
    const Coefficients<N, P> x(c);
    std::int64_t i = 0;
    for (; i + kBlock <= n; i += kBlock) {
      const char* coming = lines(next.weights, weights_run, kLines);
      nearer(lines(next.beside, beside_run, 1));
      for (int line = 0; line < kLines; ++line) nearer(coming + 64 * line);
      x.template add<kPer>(rows, at + i, into + i);
    }
    for (; i < n; i += kW) x.template add<1>(rows, at + i, into + i);
    next.weights.now = weights_run;
    next.beside.now = beside_run;
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
  const int ranks = last - b.starts[slice];
  int pass = 0;
  in_groups<P>(b.starts[slice], last, [&](int r, auto width) {
    constexpr int rows = decltype(width)::value;
    Ahead next;
    if (r + rows < last) {
      ahead_of_b<P>(a, b, r + rows, last, at, n, next);
    } else if (at + n < end) {
      const std::int64_t more = end - at - n;
      ahead_of_b<P>(a, b, b.starts[slice], last, at + n, more < kStrip ? more : kStrip, next);
    } else if (b.next && end == a.outputs && b.next->starts[a.slices] > 0) {
      ahead_of_a<P>(a, *b.next, 0, b.next->starts[a.slices], next);
    }
    if (b.next && at == 0) {
      beside_rows(a, *b.next, a.x, a.x_row, a.depth, pass++, passes_of<P>(ranks), next);
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
