// SPDX-License-Identifier: Apache-2.0
// How sums of a linear layer are written.
#pragma once
#include "args.h"
#include "csrc/simd/products.h"

namespace {

using headrace::LinearArgs;

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

// f of an element type
template <class Function>
inline void by_type(int dtype, const Function& f) {
  if (dtype == headrace::kF32) return f(float{});
  if (dtype == headrace::kBF16) return f(bf16{});
  f(fp16{});
}
// The same of x: where the level has instructions for bf16, no other comes to it.
#ifdef HEADRACE_DOTS
template <class Function>
inline void by_rows(int, const Function& f) {
  f(bf16{});
}
#else
template <class Function>
inline void by_rows(int dtype, const Function& f) {
  by_type(dtype, f);
}
#endif

// out = `rows` rows of x side by side: a vector of each, then the next of each. Rows that lie a
// power of two apart would fight for the same few lines of the cache.
template <class L, class X>
inline void pack_rows(const X* x, std::int64_t x_row, int rows, std::int64_t depth,
                      typename L::Packed* out) {
  std::int64_t k = 0;
  for (; k + L::width <= depth; k += L::width) {
    for (int m = 0; m < rows; ++m, out += L::width) L::pack(x + m * x_row + k, out);
  }
  if (k == depth) return;
  for (int m = 0; m < rows; ++m, out += L::width) {
    L::pack(Tail<L, X>(x + m * x_row + k, static_cast<int>(depth - k)).lanes, out);
  }
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
