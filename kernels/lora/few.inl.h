// SPDX-License-Identifier: Apache-2.0
// Blocks of too few tokens to share a weight that was widened: memory sets the pace. Weights go
// from memory into the sums, codes by way of registers, while those that are read next come nearer.
// The sums are those of many.inl.h, in the same order.
#pragma once
#include "coefficients.inl.h"
#include "few_codes.inl.h"

namespace {

// sums[N] = x . rows of A, over the whole depth.
template <int N, class P, class X>
inline void whole_dots(const LoraArgs& a, const P* const* rows, const float* const* scales,
                       const X* x, Ahead& next, F* sums) {
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
      acc[i] = L::add(L::read(x + k), L::part(rows[i] + k, a.depth - k), acc[i]);
    }
    next.weights.now = weights_run;
    next.beside.now = beside_run;
    for (int i = 0; i < N; ++i) sums[i] = acc[i];
  }
}

template <int N>
inline void hsums(const F* sums, float* out) {
  if constexpr (N == 16) {
    hsum16(sums, out);
  } else if constexpr (N == 8) {
    hsum8(sums, out);
  } else if constexpr (N == 4) {
    hsum4(sums, out);
  } else {
    for (int i = 0; i < N; ++i) out[i] = hsum(sums[i]);
  }
}

template <int N, class P, class X>
inline void shrink_whole(const LoraArgs& a, const LoraBlock& b, int r, const X* const* xs,
                         Ahead& next) {
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
    whole_dots<N>(a, rows, scales, xs[m], next, sums);
    float dot[N];
    hsums<N>(sums, dot);
    for (int i = 0; i < N; ++i) {
      b.bridge[m * all + r + i] = dot[i] * b.factors[m * b.width + b.adapter[r + i]];
    }
  }
}

// xs: the block's rows of x.
template <class P, class X>
inline void shrink_groups(const LoraArgs& a, const LoraBlock& b, int first, int last,
                          const X* const* xs) {
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
    shrink_whole<n, P>(a, b, r, xs, next);
  });
}

template <class P>
inline void shrink_few(const LoraArgs& a, const LoraBlock& b, int first, int last, float* scratch) {
  if constexpr (kTaken<P> == kTakenMost) {  // passes over x are so few that each widens it
    if (a.x_dtype == headrace::kBF16) {
      const bf16* xs[kFew];
      for (int m = 0; m < b.count; ++m) {
        xs[m] = static_cast<const bf16*>(a.x) + b.tokens[m] * a.x_row;
      }
      return shrink_groups<P>(a, b, first, last, xs);
    }
  }
  const Packed<P>* xs[kFew];
  const std::int64_t x_row = padded(a.depth);
  for (int m = 0; m < b.count; ++m) {
    auto* x = reinterpret_cast<Packed<P>*>(scratch) + m * x_row;
    take_any(a.x, b.tokens[m] * a.x_row, a.depth, a.x_dtype, x);
    xs[m] = x;
  }
  shrink_groups<P>(a, b, first, last, xs);
}

// Columns += c[0:N] rows[0:N][at:at + n], for one token; n in whole vectors, codes in blocks.
template <int N, class P>
inline void along_rows(const LoraArgs& a, const float* c, const P* const* rows,
                       const float* const* scales, std::int64_t at, std::int64_t n,
                       const Columns& to, Ahead& next) {
  if constexpr (kCodes<P>) {
    const std::int64_t wide =
        step_of(at, a.b_group) == 1 ? 0 : n / (kStep * kBlock) * kStep * kBlock;
    if (wide) add_codes<N, kStep>(c, rows, scales, a.b_group, at, wide, to, next);
    if (wide == n) return;
    Columns rest = to;
    rest.sums += wide;
    rest.y_at += wide;
    add_codes<N, 1>(c, rows, scales, a.b_group, at + wide, n - wide, rest, next);
  } else {
    float* into = to.sums;
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

// Of N rank rows, those that come into a sum together.
template <int N, class P>
constexpr int kTorn = 1;
#ifdef HEADRACE_DOTS
template <int N>
constexpr int kTorn<N, paired> = N < 2 ? N : 2;
#endif

// The few columns behind whole vectors or blocks, widened first: N of `rows` rank rows at a time,
// no more than are added together.
template <int N, class P>
__attribute__((noinline)) void along_tail(const LoraArgs& a, const float* c, const P* const* rows,
                                          const float* const* scales, int count, std::int64_t at,
                                          int n, float* into) {
  using T = std::conditional_t<kCodes<P>, float, P>;
  for (int done = 0; done < count; done += N, rows += N, scales += N, c += N) {
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
}

// Columns of a strip that are taken in whole vectors, codes in whole blocks.
template <class P>
inline int whole_columns(const LoraArgs& a, std::int64_t at, int n) {
  if constexpr (!kCodes<P>) return n / kW * kW;
  return at % kBlock || a.b_group % kBlock ? 0 : n / kBlock * kBlock;
}

// Rank rows [r, r + N) of a strip of one slice.
template <int N, class P>
inline void strip_rows(const LoraArgs& a, const LoraBlock& b, int r, std::int64_t at, int n,
                       bool begin, bool end, Ahead& next, float* acc) {
  const P* rows[N];
  const float* scales[N] = {};
  for (int i = 0; i < N; ++i) {
    rows[i] = b_row<P>(a, b.rank_rows[r + i]);
    if constexpr (kCodes<P>) scales[i] = b_scales(a, b.rank_rows[r + i]);
  }
  const int main = whole_columns<P>(a, at, n);
  const int all = b.starts[a.slices];
  for (int m = 0; m < b.count; ++m) {
    const float* c = b.bridge + m * all + r;
    float* into = acc + m * kStrip;
    const Columns to{into, begin, end, a.y, b.tokens[m] * a.y_row + at, a.x_dtype};
    along_rows<N>(a, c, rows, scales, at, main, to, next);
    for (int i = main; i < n; i += kBlock) {
      along_tail<kTorn<N, P>>(a, c, rows, scales, N, at + i, n - i < kBlock ? n - i : kBlock,
                              into + i);
    }
  }
}

// A strip of one slice: columns [at, at + n), of which `end` is the slice's last. Adds the sums to
// y and gives true, or leaves them in acc, kStrip floats a token.
template <class P>
inline bool expand_strip(const LoraArgs& a, const LoraBlock& b, int slice, std::int64_t at, int n,
                         std::int64_t end, float* acc) {
  const int last = b.starts[slice + 1];
  const int ranks = last - b.starts[slice];
  // Sums of codes need no zeros, nor a place of their own where nothing else is added.
  const std::int64_t own = kCodes<P> && ranks ? whole_columns<P>(a, at, n) : 0;
  const bool straight = own == n && is_plain(b);
  for (int m = 0; m < b.count; ++m) {
    memset(acc + m * kStrip + own, 0, sizeof(float) * (padded(n) - own));
  }
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
    const bool begin = r == b.starts[slice], end = straight && r + rows == last;
    strip_rows<rows, P>(a, b, r, at, n, begin, end, next, acc);
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
  return straight;
}

}  // namespace
