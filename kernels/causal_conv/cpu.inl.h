// SPDX-License-Identifier: Apache-2.0
// A few tokens at a time along the channels, as rows lie in memory: down the rows, every step would
// be another page. Each output adds its taps oldest first, so its bits do not know how the stream
// came in chunks.
#pragma once
#include <string.h>

#include "args.h"
#include "csrc/simd/vec.h"

namespace {

using headrace::CausalConvArgs;
using headrace::kConvChannels;
using headrace::kConvTokens;

inline F silu(F x) {
  const F size = max(sub(zero(), x), x);
  const F e = exp2(mul(size, set1(-1.44269504f)));
  return div(fma(min(zero(), x), e, max(zero(), x)), add(set1(1.f), e));
}

// The rows of one item: those of x from the stream's first token on, and what it kept before.
template <class T>
struct Rows {
  const T* x;          // first channel of the item
  std::int64_t x_row;  // stride
  const T* history;    // [kept][kConvChannels], oldest first
  int kept;

  // `some` channels from c on of the row `t` after the stream's first token; some is kW unless
  // Part.
  template <bool Early, bool Part>
  F at(std::int64_t t, int c, int some) const {
    const T* from = Early && t < 0 ? history + (kept + t) * kConvChannels : x + t * x_row;
    from += c;
    if (!Part) return load(from);
    T lanes[kW] = {};
    memcpy(lanes, from, some * sizeof(T));
    return load(lanes);
  }
};

// M tokens from `t` on and one vector of channels. Taps is 0 where the compiler does not know them.
template <int M, int Taps, bool Early, bool Part, class T>
inline void outputs(const CausalConvArgs& a, const Rows<T>& rows, std::int64_t t, int c, int some,
                    const float* weight, const float* bias, T* y) {
  const int taps = Taps ? Taps : a.taps;
  F sum[M];
  for (int m = 0; m < M; ++m) sum[m] = load(bias + c);
  for (int j = 0; j < taps; ++j) {
    const F w = load(weight + j * a.padded + c);
    for (int m = 0; m < M; ++m) {
      const F x = rows.template at<Early, Part>(t + m + j - (taps - 1), c, some);
      sum[m] = fma(x, w, sum[m]);
    }
  }
  for (int m = 0; m < M; ++m) {
    if (a.silu) sum[m] = silu(sum[m]);
    T* to = y + (t + m) * a.channels + c;
    if (!Part) {
      store(to, sum[m]);
    } else {
      T lanes[kW];
      store(lanes, sum[m]);
      memcpy(to, lanes, some * sizeof(T));
    }
  }
}

template <int M, int Taps, bool Early, class T>
inline void along(const CausalConvArgs& a, const Rows<T>& rows, std::int64_t t, int n,
                  const float* weight, const float* bias, T* y) {
  int c = 0;
  for (; c + kW <= n; c += kW) {
    outputs<M, Taps, Early, false>(a, rows, t, c, kW, weight, bias, y);
  }
  if (c < n) outputs<M, Taps, Early, true>(a, rows, t, c, n - c, weight, bias, y);
}

// Weights and kept inputs lie channel after channel; here they become rows, and back. Three and
// four of them are shuffles to a compiler that sees plain numbers.
template <class T>
struct Plain {
  using type = std::uint16_t;
};
template <>
struct Plain<float> {
  using type = float;
};

template <class T>
inline void split3(const T* __restrict from, std::int64_t n, T* __restrict a, T* __restrict b,
                   T* __restrict c) {
  for (std::int64_t i = 0; i < n; ++i) {
    a[i] = from[3 * i];
    b[i] = from[3 * i + 1];
    c[i] = from[3 * i + 2];
  }
}

template <class T>
inline void join3(const T* __restrict a, const T* __restrict b, const T* __restrict c,
                  std::int64_t n, T* __restrict to) {
  for (std::int64_t i = 0; i < n; ++i) {
    to[3 * i] = a[i];
    to[3 * i + 1] = b[i];
    to[3 * i + 2] = c[i];
  }
}

inline void split4(const float* __restrict from, std::int64_t n, float* __restrict a,
                   float* __restrict b, float* __restrict c, float* __restrict d) {
  for (std::int64_t i = 0; i < n; ++i) {
    a[i] = from[4 * i];
    b[i] = from[4 * i + 1];
    c[i] = from[4 * i + 2];
    d[i] = from[4 * i + 3];
  }
}

template <class T>
inline void read_state(const T* state, int n, int kept, T* rows) {
  using P = typename Plain<T>::type;
  if (kept == 3) {
    P* to = reinterpret_cast<P*>(rows);
    return split3(reinterpret_cast<const P*>(state), n, to, to + kConvChannels,
                  to + 2 * kConvChannels);
  }
  for (int j = 0; j < kept; ++j) {
    for (int c = 0; c < n; ++c) rows[j * kConvChannels + c] = state[c * kept + j];
  }
}

template <class T>
inline void write_state(const T* const* rows, int n, int kept, T* state) {
  using P = typename Plain<T>::type;
  const auto row = [&](int j) { return reinterpret_cast<const P*>(rows[j]); };
  if (kept == 3) return join3(row(0), row(1), row(2), n, reinterpret_cast<P*>(state));
  for (int j = 0; j < kept; ++j) {
    for (int c = 0; c < n; ++c) state[c * kept + j] = rows[j][c];
  }
}

template <class T>
inline T* state_of(const CausalConvArgs& a, std::int64_t stream, std::int64_t first) {
  return static_cast<T*>(a.state) + (a.rows[stream] * a.channels + first) * (a.taps - 1);
}

inline int channels_of(const CausalConvArgs& a, std::int64_t first) {
  const std::int64_t left = a.channels - first;
  return left < kConvChannels ? static_cast<int>(left) : kConvChannels;
}

// The state holds inputs as they came: the last of what was kept and what is new, one after the
// other. `history` is read only where a stream brings fewer tokens than are kept.
template <class T>
inline void keep_inputs(const CausalConvArgs& a, std::int64_t stream, std::int64_t first,
                        const T* history) {
  const int kept = a.taps - 1;
  const std::int64_t begin = a.indptr[stream], count = a.indptr[stream + 1] - begin;
  const T *x = static_cast<const T*>(a.x) + begin * a.x_row + first, *rows[headrace::kConvTaps];
  for (int j = 0; j < kept; ++j) {
    const std::int64_t from = count + j;
    rows[j] = from < kept ? history + from * kConvChannels : x + (from - kept) * a.x_row;
  }
  write_state(rows, channels_of(a, first), kept, state_of<T>(a, stream, first));
}

template <int Taps, class T>
inline void item(const CausalConvArgs& a, std::int64_t stream, std::int64_t begin,
                 std::int64_t first, T* history) {
  constexpr int kM = 4;  // rows in and out stay within the ways of a cache set
  const std::int64_t start = a.indptr[stream], count = a.indptr[stream + 1] - start;
  const std::int64_t end = count < begin + kConvTokens ? count : begin + kConvTokens;
  const int n = channels_of(a, first), kept = a.taps - 1;
  if (begin == 0) read_state(state_of<T>(a, stream, first), n, kept, history);
  const Rows<T> rows{static_cast<const T*>(a.x) + start * a.x_row + first, a.x_row, history, kept};
  const float *weight = a.weight + first, *bias = a.bias + first;
  T* y = static_cast<T*>(a.y) + start * a.channels + first;
  std::int64_t t = begin;
  for (; t < end && t < kept; ++t) along<1, Taps, true>(a, rows, t, n, weight, bias, y);
  for (; t + kM <= end; t += kM) along<kM, Taps, false>(a, rows, t, n, weight, bias, y);
  for (; t < end; ++t) along<1, Taps, false>(a, rows, t, n, weight, bias, y);
  if (count <= kConvTokens) keep_inputs(a, stream, first, history);
}

template <class T>
inline void any_taps(const CausalConvArgs& a, std::int64_t stream, std::int64_t begin,
                     std::int64_t first, void* scratch) {
  if (a.taps == 4) return item<4>(a, stream, begin, first, static_cast<T*>(scratch));
  item<0>(a, stream, begin, first, static_cast<T*>(scratch));
}

void run(const CausalConvArgs& a, std::int64_t stream, std::int64_t begin, std::int64_t first,
         void* scratch) {
  if (a.dtype == headrace::kF32) return any_taps<float>(a, stream, begin, first, scratch);
  if (a.dtype == headrace::kBF16) return any_taps<bf16>(a, stream, begin, first, scratch);
  return any_taps<fp16>(a, stream, begin, first, scratch);
}

void keep(const CausalConvArgs& a, std::int64_t stream, std::int64_t first) {
  if (a.dtype == headrace::kF32) return keep_inputs<float>(a, stream, first, nullptr);
  if (a.dtype == headrace::kBF16) return keep_inputs<bf16>(a, stream, first, nullptr);
  return keep_inputs<fp16>(a, stream, first, nullptr);
}

void weights(const CausalConvArgs& a, float* rows) {
  const auto row = [&](int j) { return rows + j * a.padded; };
  if (a.taps == 4) return split4(a.weight, a.channels, row(0), row(1), row(2), row(3));
  for (int j = 0; j < a.taps; ++j) {
    for (std::int64_t c = 0; c < a.channels; ++c) row(j)[c] = a.weight[c * a.taps + j];
  }
}

}  // namespace

extern "C" const headrace::CausalConvKernels HEADRACE_JOIN(headrace_causal_conv_,
                                                           HEADRACE_LEVEL) = {weights, run, keep};
