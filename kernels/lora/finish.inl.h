// SPDX-License-Identifier: Apache-2.0
// How products reach y: bias of adapters, DoRA's gain, one rounding.
#pragma once
#include <string.h>

#include "args.h"
#include "csrc/simd/vec.h"

namespace {

inline void round_any(void* p, std::int64_t at, int dtype, F value) {
#ifdef HEADRACE_DOTS
  if (dtype == headrace::kBF16) return narrow(value, static_cast<bf16*>(p) + at);
#endif
  store_any(p, at, dtype, value);
}

// Up to a vector of y.
inline void store_some(void* p, std::int64_t at, int n, int dtype, F value) {
  if (n >= kW) return round_any(p, at, dtype, value);
  const int size = headrace::dtype_size(dtype);
  char lanes[kW * 4];
  round_any(lanes, 0, dtype, value);
  memcpy(static_cast<char*>(p) + at * size, lanes, n * size);
}

// Adds columns [first, first + n) of the accumulated product to the rows of y.
inline void finish(const headrace::LoraArgs& a, const headrace::LoraBlock& b, std::int64_t first,
                   int n, const float* acc, std::int64_t acc_row) {
  bool plain = b.gain_row < 0;
  for (int w = 0; w < b.width; ++w) plain = plain && b.bias_rows[w] < 0;
  for (int m = 0; m < b.count; ++m) {
    int i = 0;
    for (const std::int64_t at = b.tokens[m] * a.y_row + first; plain && i + kW <= n; i += kW) {
      const F y = add(load_any(a.y, at + i, a.x_dtype), load(acc + m * acc_row + i));
      round_any(a.y, at + i, a.x_dtype, y);
    }
    for (; i < n; i += kW) {
      const int some = n - i < kW ? n - i : kW;
      const std::int64_t at = first + i, y_at = b.tokens[m] * a.y_row + at;
      float lanes[kW];
      F sum = load(acc + m * acc_row + i);
      for (int w = 0; w < b.width; ++w) {
        if (b.bias_rows[w] < 0) continue;
        widen_any(a.bias, b.bias_rows[w] * a.outputs + at, some, headrace::kF32, lanes);
        sum = fma(set1(b.factors[m * b.width + w]), load(lanes), sum);
      }
      widen_any(a.y, y_at, some, a.x_dtype, lanes);
      F y = load(lanes);
      if (b.gain_row >= 0) {
        F base = zero();
        if (a.base_bias) {
          widen_any(a.base_bias, at, some, headrace::kF32, lanes);
          base = load(lanes);
        }
        widen_any(a.gain, b.gain_row * a.outputs + at, some, headrace::kF32, lanes);
        y = fma(load(lanes), add(sub(y, base), sum), base);
      } else {
        y = add(y, sum);
      }
      store_some(a.y, y_at, some, a.x_dtype, y);
    }
  }
}

}  // namespace
