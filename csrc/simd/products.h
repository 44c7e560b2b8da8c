// SPDX-License-Identifier: Apache-2.0
// What one multiply-add of a dot product takes: fp32, or pairs of bf16 where the level has them.
#pragma once
#include "part.h"
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
  // The last elements of a row, fewer than `width`, with zeros behind.
  template <class T>
  static F part(const T* p, std::int64_t left) {
    return load_part(p, static_cast<int>(left));
  }
  static F add(F x, F w, F sum) { return fma(x, w, sum); }
#ifdef HEADRACE_LANES
  // A quarter of the elements, in every lane of four.
  static F quarter(const float* p) { return spread(p); }
  static F quarter(F a, int which) { return spread(a, which); }
  static F plain(F a) { return a; }
#endif
  static void put(float* to, F a) { store(to, a); }
};
#ifdef HEADRACE_DOTS
template <>
struct Lanes<bf16, bf16> {
  static constexpr int width = 2 * kW;
  using Packed = bf16;
  using Vector = Pairs;
  static Pairs read(const bf16* p) { return load_pairs(p); }
  static Pairs part(const bf16* p, std::int64_t left) { return load_part_pairs(p, left); }
  static F add(Pairs x, Pairs w, F sum) { return dot(x, w, sum); }
  static Pairs quarter(const bf16* p) { return spread_pairs(p); }
  static Pairs quarter(Pairs a, int which) {
    return {_mm512_castps_si512(spread(plain(a), which).v)};
  }
  static F plain(Pairs a) { return {_mm512_castsi512_ps(a.v)}; }
  static void put(bf16* to, Pairs a) { store_pairs(to, a); }
};
#endif

// To a vector of a type, by the instruction for bf16 where the level has one.
inline void round_to(float* to, F a) { store(to, a); }
inline void round_to(fp16* to, F a) { store(to, a); }
inline void round_to(bf16* to, F a) {
#ifdef HEADRACE_DOTS
  narrow(a, to);
#else
  store(to, a);
#endif
}

}  // namespace
