// SPDX-License-Identifier: Apache-2.0
// How sums of a linear layer are written.
#pragma once
#include "args.h"
#include "csrc/simd/products.h"

namespace {

using headrace::LinearArgs;

inline float element(const void* p, std::int64_t i, int dtype) {
  if (dtype == headrace::kF32) return static_cast<const float*>(p)[i];
  if (dtype == headrace::kBF16) {
    const std::uint32_t bits = std::uint32_t{static_cast<const bf16*>(p)[i].bits} << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
  }
  fp16 one[kW] = {static_cast<const fp16*>(p)[i]};
  float wide[kW];
  store(wide, load(one));
  return wide[0];
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
    for (int m = 0; m < rows; ++m, out += L::width) L::put(out, L::read(x + m * x_row + k));
  }
  if (k == depth) return;
  for (int m = 0; m < rows; ++m, out += L::width) {
    L::put(out, L::part(x + m * x_row + k, depth - k));
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

#ifdef HEADRACE_LANES
// The bias of up to kW outputs from `col` on, zeros behind them.
inline void take_bias(const LinearArgs& a, std::int64_t col, int cols, float* to) {
  if (cols == kW) return store(to, load_any(a.bias, col, a.w_dtype));
  for (int n = 0; n < kW; ++n) to[n] = n < cols ? element(a.bias, col + n, a.w_dtype) : 0.f;
}

// Rows of y: a line of kW outputs each, of which the first `cols` count.
template <int Most, class X>
inline void write_lines(X* y, std::int64_t y_row, F* lines, int rows, const float* bias, int cols) {
  if (bias) {
#pragma GCC unroll 8
    for (int r = 0; r < Most; ++r) lines[r] = add(lines[r], load(bias));
  }
  if (rows == Most && cols == kW) {
#pragma GCC unroll 8
    for (int r = 0; r < Most; ++r) round_to(y + r * y_row, lines[r]);
    return;
  }
  X part[Most][kW];
#pragma GCC unroll 8
  for (int r = 0; r < Most; ++r) round_to(part[r], lines[r]);
  for (int r = 0; r < rows; ++r) std::memcpy(y + r * y_row, part[r], cols * sizeof(X));
}

// Zero without a copy of another: copies, which compilers prefer, take turns from multiply-adds.
inline void clear(F& sum) { __asm__ volatile("vpxord %x0, %x0, %x0" : "=v"(sum.v)); }
#endif

}  // namespace
