// SPDX-License-Identifier: Apache-2.0
// Four rows in the four lanes of a vector: a sum then lies in four lanes of four vectors, and three
// additions of whole vectors, which end those of four rows, replace most of what ends a sum of its
// own. For depths so short that the ends of sums count. The bits are those of `dots`: the same
// partial sums in the same tree.
#pragma once
#include "lanes.inl.h"

#ifdef HEADRACE_LANES

namespace {

// Partial sums of 4 * Q packed rows and two outputs: of each a vector, four lanes of four rows.
// to[Q] for the first, `apart` floats behind them for the second.
template <int Q, class X>
inline void two_outputs(const X* from, const X* w0, const X* w1, std::int64_t depth, float* to,
                        int apart) {
  using L = Lanes<X, X>;
  F acc[4 * Q * 2];
#pragma GCC unroll 32
  for (int i = 0; i < 8 * Q; ++i) clear(acc[i]);
  // y, z: a quarter of what each output has in this step.
  const auto step = [&](auto&& y_of, auto&& z_of) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const auto y = y_of(g), z = z_of(g);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        auto xs = L::read(from + (g * Q + q) * L::width);
        __asm__("" : "+v"(xs.v));  // read once, not by each product
        const int at = (g * Q + q) * 2;
        acc[at] = L::add(xs, y, acc[at]);
        acc[at + 1] = L::add(xs, z, acc[at + 1]);
      }
    }
    from += 4 * Q * L::width;
  };
  const auto read = [](const X* w) {
    return [w](int g) { return L::quarter(w + g * L::width / 4); };
  };
  std::int64_t k = 0;
  for (; k + L::width <= depth; k += L::width) step(read(w0 + k), read(w1 + k));
  if (k < depth) {
    const auto y = L::part(w0 + k, depth - k), z = L::part(w1 + k, depth - k);
    step([&](int g) { return L::quarter(y, g); }, [&](int g) { return L::quarter(z, g); });
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      constexpr int quarter = 2 * Q;  // from one to the next
      const int at = 2 * q + n;
      const F even = add(acc[at], acc[at + 2 * quarter]);
      const F odd = add(acc[at + quarter], acc[at + 3 * quarter]);
      store(to + q * kW + n * apart, add(even, odd));
    }
  }
}

// Up to 4 * Q packed rows against up to kW outputs. What ends their sums waits until all are there:
// one would wait for the other else.
template <int Q, class X>
inline void quads(const LinearArgs& a, const X* x, int rows, std::int64_t row, std::int64_t col,
                  int cols) {
  alignas(64) float partial[kW * Q * kW];
  const X* weight = static_cast<const X*>(a.weight) + col * a.w_row;
  for (int n = 0; n < cols; n += 2) {
    const X* w1 = weight + (n + 1 < cols ? n + 1 : n) * a.w_row;
    two_outputs<Q>(x, weight + n * a.w_row, w1, a.depth, partial + n * Q * kW, Q * kW);
  }
  for (int n = (cols + 1) / 2 * 2; n < kW; ++n) {
    for (int q = 0; q < Q; ++q) store(partial + (n * Q + q) * kW, zero());
  }
  float bias[kW];
  if (a.bias) take_bias(a, col, cols, bias);
  X* y = static_cast<X*>(a.y) + row * a.outputs + col;
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q, y += 4 * a.outputs) {
    F lines[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      F of[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) of[j] = load(partial + ((4 * i + j) * Q + q) * kW);
      lines[i] = sum_lanes(of);
    }
    transpose_lanes(lines);
    const int left = rows - 4 * q;
    if (left > 0) {
      write_lines<4>(y, a.outputs, lines, left < 4 ? left : 4, a.bias ? bias : nullptr, cols);
    }
  }
}

// out = the rows, for every step over the depth and quarter of it, four rows to a vector.
template <int Q, class X>
inline void pack_quads(const X* x, std::int64_t x_row, int rows, std::int64_t depth, X* out) {
  using L = Lanes<X, X>;
  for (std::int64_t k = 0; k < depth; k += L::width, out += 4 * Q * L::width) {
    const std::int64_t left = depth - k;
    for (int q = 0; q < Q; ++q) {
      F v[4];
      for (int i = 0; i < 4; ++i) {
        const X* from = x + (4 * q + i) * x_row + k;
        if (4 * q + i >= rows) {
          v[i] = zero();
        } else {
          v[i] = L::plain(left < L::width ? L::part(from, left) : L::read(from));
        }
      }
      transpose_lanes(v);
      for (int g = 0; g < 4; ++g) {
        store(reinterpret_cast<float*>(out + (g * Q + q) * L::width), v[g]);
      }
    }
  }
}

template <int Q, class X>
inline void quad_rows(const LinearArgs& a, std::int64_t row, int rows, std::int64_t first,
                      std::int64_t last, X* packed) {
  pack_quads<Q>(static_cast<const X*>(a.x) + row * a.x_row, a.x_row, rows, a.depth, packed);
  for (std::int64_t n = first; n < last; n += kW) {
    quads<Q>(a, packed, rows, row, n, static_cast<int>(last - n < kW ? last - n : kW));
  }
}

// Rows of `left` that go together. Four alone take nearly as long as eight.
inline int quad_block(std::int64_t left) {
  if (left > 12 && left <= 16) return 8;
  return static_cast<int>(left < 12 ? left : 12);
}

template <class X>
inline void blocks_of_quads(const LinearArgs& a, std::int64_t begin, std::int64_t end,
                            std::int64_t first, std::int64_t last, float* scratch) {
  X* packed = reinterpret_cast<X*>(scratch);
  int rows = 0;
  for (std::int64_t t = begin; t < end; t += rows) {
    rows = quad_block(end - t);
    if (rows > 8) {
      quad_rows<3>(a, t, rows, first, last, packed);
    } else if (rows > 4) {
      quad_rows<2>(a, t, rows, first, last, packed);
    } else {
      quad_rows<1>(a, t, rows, first, last, packed);
    }
  }
}

// Whether a type has quads, and bytes of a row up to which they pay.
template <class X, class W>
constexpr bool kQuads = false;
template <>
constexpr bool kQuads<float, float> = true;
#ifdef HEADRACE_DOTS
template <>
constexpr bool kQuads<bf16, bf16> = true;
#endif
constexpr std::int64_t kShort = 2048;

}  // namespace

#endif
