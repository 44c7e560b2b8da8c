// SPDX-License-Identifier: Apache-2.0
// What the kernels of a linear layer share: vectors of a row, and how sums are written.
#pragma once
#include "args.h"
#include "csrc/simd/vec.h"

namespace {

using headrace::LinearArgs;

// A vector of a row, of the elements that one multiply-add takes.
template <class X, class W>
struct Lanes {
  static constexpr int width = kW;
  using Packed = float;  // of x, widened once
  using Vector = F;
  template <class T>
  static F read(const T* p) {
    return load(p);
  }
  static F add(F x, F w, F sum) { return fma(x, w, sum); }
#ifdef HEADRACE_LANES
  static F quarter(const float* p) { return spread(p); }
#endif
  static void pack(const X* from, float* to) { store(to, load(from)); }
};
#ifdef HEADRACE_DOTS
template <>
struct Lanes<bf16, bf16> {
  static constexpr int width = 2 * kW;
  using Packed = bf16;
  using Vector = Pairs;
  static Pairs read(const bf16* p) { return load_pairs(p); }
  static Pairs quarter(const bf16* p) { return spread_pairs(p); }
  static F add(Pairs x, Pairs w, F sum) { return dot(x, w, sum); }
  static void pack(const bf16* from, bf16* to) { std::memcpy(to, from, 2 * width); }
};
#endif

// The last `left` elements of a row, with zeros behind.
template <class L, class T>
struct Tail {
  Tail(const T* p, int left) {
    for (int i = 0; i < left; ++i) lanes[i] = p[i];
  }
  T lanes[L::width] = {};
};

inline float element(const void* p, std::int64_t i, int dtype) {
  char one[kW * sizeof(float)] = {};
  const int size = headrace::dtype_size(dtype);
  std::memcpy(one, static_cast<const char*>(p) + i * size, size);
  float wide[kW];
  store(wide, load_any(one, 0, dtype));
  return wide[0];
}

inline void round_to(float* to, F a) { store(to, a); }
inline void round_to(fp16* to, F a) { store(to, a); }
inline void round_to(bf16* to, F a) {
#ifdef HEADRACE_DOTS
  narrow(a, to);
#else
  store(to, a);
#endif
}

// Writes sums[rows][N], of which the first `cols` columns count, once the bias is added to them.
template <class X, int N, int Words>
inline void finish(const LinearArgs& a, float* sums, int rows, std::int64_t row, std::int64_t col,
                   int cols) {
  if (a.bias) {
    for (int n = 0; n < cols; ++n) {
      const float bias = element(a.bias, col + n, a.w_dtype);
      for (int m = 0; m < rows; ++m) sums[m * N + n] += bias;
    }
  }
  alignas(64) X out[Words];
  for (int j = 0; j < Words; j += kW) round_to(out + j, load(sums + j));
  X* y = static_cast<X*>(a.y) + row * a.outputs + col;
  const X* from = out;
  if (cols == N) {  // known sizes make moves
    for (int m = 0; m < rows; ++m, y += a.outputs, from += N) std::memcpy(y, from, N * sizeof(X));
  } else {
    for (int m = 0; m < rows; ++m, y += a.outputs, from += N) {
      std::memcpy(y, from, cols * sizeof(X));
    }
  }
}

}  // namespace
