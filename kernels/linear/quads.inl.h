// SPDX-License-Identifier: Apache-2.0
// Four rows in the four lanes of a vector: a sum then lies in four lanes of four vectors, and three
// additions of whole vectors, which end those of four rows, replace most of what ends a sum of its
// own. For depths so short that the ends of sums count. The bits are those of `dots`: the same
// partial sums in the same tree.
#pragma once
#include "lanes.inl.h"

#ifdef HEADRACE_LANES

namespace {

// Up to 4 * Q packed rows against four outputs.
template <int Q, class X>
inline void quads(const LinearArgs& a, const X* x, int rows, std::int64_t row, std::int64_t col,
                  int cols) {
  using L = Lanes<X, X>;
  F ends[2][Q];
  for (int half = 0; half < 2; ++half) {
    const X* w[2];
    for (int n = 0; n < 2; ++n) {
      const int of = 2 * half + n < cols ? 2 * half + n : cols - 1;
      w[n] = static_cast<const X*>(a.weight) + (col + of) * a.w_row;
    }
    F acc[4 * Q * 2];
#pragma GCC unroll 32
    for (int i = 0; i < 8 * Q; ++i) acc[i] = zero();
    const X *from = x, *w0 = w[0], *w1 = w[1];
    X last[2][L::width];
    for (std::int64_t k = 0; k < a.depth; k += L::width, from += 4 * Q * L::width) {
      if (k + L::width > a.depth) {
        const int left = static_cast<int>(a.depth - k);
        for (int n = 0; n < 2; ++n) std::memset(last[n], 0, sizeof(last[n]));
        for (int n = 0; n < 2; ++n) std::memcpy(last[n], n ? w1 : w0, left * sizeof(X));
        w0 = last[0], w1 = last[1];
      }
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        const auto y = L::quarter(w0 + g * L::width / 4), z = L::quarter(w1 + g * L::width / 4);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          auto xs = L::read(from + (g * Q + q) * L::width);
          __asm__("" : "+v"(xs.v));  // read once, not by each product
          const int at = (g * Q + q) * 2;
          acc[at] = L::add(xs, y, acc[at]);
          acc[at + 1] = L::add(xs, z, acc[at + 1]);
        }
      }
      w0 += L::width, w1 += L::width;
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      F whole[2];
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        constexpr int apart = 2 * Q;  // from a quarter to the next
        const int at = 2 * q + n;
        const F even = add(acc[at], acc[at + 2 * apart]);
        whole[n] = add(even, add(acc[at + apart], acc[at + 3 * apart]));
      }
      ends[half][q] = sum_lanes(whole[0], whole[1]);
    }
  }
  alignas(64) float sums[Q * kW];
  for (int q = 0; q < Q; ++q) store(sums + q * kW, join_lanes(ends[0][q], ends[1][q]));
  finish<X, 4, Q * kW>(a, sums, rows, row, col, cols);
}

// out = the rows, for every step over the depth and quarter of it, four rows to a vector.
template <int Q, class X>
inline void pack_quads(const X* x, std::int64_t x_row, int rows, std::int64_t depth, X* out) {
  using L = Lanes<X, X>;
  const auto whole = [](const X* p) { return load(reinterpret_cast<const float*>(p)); };
  for (std::int64_t k = 0; k < depth; k += L::width, out += 4 * Q * L::width) {
    const int left = depth - k < L::width ? static_cast<int>(depth - k) : L::width;
    for (int q = 0; q < Q; ++q) {
      F v[4];
      for (int i = 0; i < 4; ++i) {
        const X* from = x + (4 * q + i) * x_row + k;
        if (4 * q + i >= rows) {
          v[i] = zero();
        } else if (left == L::width) {
          v[i] = whole(from);
        } else {
          v[i] = whole(Tail<L, X>(from, left).lanes);
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
  for (std::int64_t n = first; n < last; n += 4) {
    quads<Q>(a, packed, rows, row, n, static_cast<int>(last - n < 4 ? last - n : 4));
  }
}

template <class X>
inline void blocks_of_quads(const LinearArgs& a, std::int64_t begin, std::int64_t end,
                            std::int64_t first, std::int64_t last, float* scratch) {
  X* packed = reinterpret_cast<X*>(scratch);
  for (std::int64_t t = begin; t < end; t += 12) {
    const int rows = static_cast<int>(end - t < 12 ? end - t : 12);
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
