// SPDX-License-Identifier: Apache-2.0
// The last inputs of a strip of channels turn in a small ring, widened; each output adds its taps
// oldest first, so its bits do not know how the stream came in chunks.
#pragma once
#include "args.h"
#include "csrc/simd/vec.h"

namespace {

using headrace::CausalConvArgs;
using headrace::kConvChannels;
using headrace::kConvTaps;

inline F silu(F x) {
  const F size = max(sub(zero(), x), x);
  const F e = exp2(mul(size, set1(-1.44269504f)));
  return div(fma(min(zero(), x), e, max(zero(), x)), add(set1(1.f), e));
}

template <class T>
inline void widen_row(const T* x, int n, float* to) {
  int i = 0;
  for (; i + kW <= n; i += kW) store(to + i, load(x + i));
  if (i == n) return;
  T lanes[kW] = {};
  for (int j = 0; j < kW && i + j < n; ++j) lanes[j] = x[i + j];
  store(to + i, load(lanes));
}

template <class T>
inline void strip(const CausalConvArgs& a, std::int64_t stream, std::int64_t first) {
  const int n =
      a.channels - first < kConvChannels ? static_cast<int>(a.channels - first) : kConvChannels;
  const int taps = a.taps, kept = taps - 1;
  const std::int64_t begin = a.indptr[stream], end = a.indptr[stream + 1];
  T* state = static_cast<T*>(a.state) + (a.rows[stream] * a.channels + first) * kept;
  const T* x = static_cast<const T*>(a.x) + first;
  float weight[kConvTaps][kConvChannels] = {}, bias[kConvChannels] = {};
  float ring[kConvTaps][kConvChannels];
  for (int c = 0; c < n; ++c) {
    for (int j = 0; j < taps; ++j) weight[j][c] = a.weight[(first + c) * taps + j];
    if (a.bias) bias[c] = a.bias[first + c];
  }
  for (int j = 0; j < kept; ++j) {
    T column[kConvChannels] = {};
    for (int c = 0; c < n; ++c) column[c] = state[c * kept + j];
    widen_row(column, kConvChannels, ring[j]);
  }
  int newest = kept;  // the row of the ring that the next input takes
  for (std::int64_t t = begin; t < end; ++t) {
    widen_row(x + t * a.x_row, n, ring[newest]);
    const int oldest = newest + 1 == taps ? 0 : newest + 1;
    T* y = static_cast<T*>(a.y) + t * a.channels + first;
    for (int i = 0; i < n; i += kW) {
      F sum = load(bias + i);
      int row = oldest;
      for (int j = 0; j < taps; ++j) {
        sum = fma(load(ring[row] + i), load(weight[j] + i), sum);
        row = row + 1 == taps ? 0 : row + 1;
      }
      if (a.silu) sum = silu(sum);
      if (i + kW <= n) {
        store(y + i, sum);
      } else {
        T lanes[kW];
        store(lanes, sum);
        for (int c = i; c < n; ++c) y[c] = lanes[c - i];
      }
    }
    newest = oldest;
  }
  // The state holds inputs as they came: old ones move up, the rest are read again.
  const std::int64_t count = end - begin;
  for (int j = 0; j < kept; ++j) {
    const std::int64_t from = count + j;  // in old state and inputs, one after the other
    for (int c = 0; c < n; ++c) {
      state[c * kept + j] =
          from < kept ? state[c * kept + from] : x[(begin + from - kept) * a.x_row + c];
    }
  }
}

void run(const CausalConvArgs& a, std::int64_t stream, std::int64_t first) {
  if (a.dtype == headrace::kF32) return strip<float>(a, stream, first);
  if (a.dtype == headrace::kBF16) return strip<bf16>(a, stream, first);
  return strip<fp16>(a, stream, first);
}

}  // namespace

extern "C" const headrace::CausalConvKernels HEADRACE_JOIN(headrace_causal_conv_,
                                                           HEADRACE_LEVEL) = {run};
