// SPDX-License-Identifier: Apache-2.0
// What one multiply-add of a dot product takes: fp32, or pairs of bf16 where the level has them.
#pragma once
#include "vec.h"

namespace {

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

}  // namespace
