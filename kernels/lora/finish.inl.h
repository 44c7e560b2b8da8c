// SPDX-License-Identifier: Apache-2.0
// How products reach y: bias of adapters, DoRA's gain, one rounding.
#pragma once
#include <string.h>

#include <type_traits>

#include "args.h"
#include "csrc/simd/products.h"

namespace {

inline void round_any(void* p, std::int64_t at, int dtype, F value) {
  if (dtype == headrace::kF32) return round_to(static_cast<float*>(p) + at, value);
  if (dtype == headrace::kBF16) return round_to(static_cast<bf16*>(p) + at, value);
  round_to(static_cast<fp16*>(p) + at, value);
}

// Up to a vector of y.
inline void store_some(void* p, std::int64_t at, int n, int dtype, F value) {
  if (n >= kW) return round_any(p, at, dtype, value);
  const int size = headrace::dtype_size(dtype);
  char lanes[kW * 4];
  round_any(lanes, 0, dtype, value);
  memcpy(static_cast<char*>(p) + at * size, lanes, n * size);
}

#if defined(HEADRACE_AVX512) && !defined(HEADRACE_DOTS)
#define HEADRACE_ADD_TWO
// Adds two vectors of sums to as many of y. The bits are those of `store`, in two thirds of its
// instructions: the upper halves of both go into one vector, and NaN is looked for once.
inline void add_two(bf16* y, F first, F second) {
  const F wide[2] = {add(load(y), first), add(load(y + kW), second)};
  if (_mm512_cmp_ps_mask(wide[0].v, wide[1].v, _CMP_UNORD_Q)) {
    for (int i = 0; i < 2; ++i) store(y + i * kW, wide[i]);
    return;
  }
  __m512i up[2];
  for (int i = 0; i < 2; ++i) {
    const __m512i x = _mm512_castps_si512(wide[i].v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    up[i] = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
  }
  static constexpr std::uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                               23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                               45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i both = _mm512_permutex2var_epi16(up[0], _mm512_loadu_si512(kUpper), up[1]);
  _mm512_storeu_si512(y, both);
}
#endif

// Adds N vectors of sums to y.
template <int N, class T>
inline void add_to(T* y, const F* sums) {
  int i = 0;
#ifdef HEADRACE_ADD_TWO
  if constexpr (std::is_same_v<T, bf16>) {
    for (; i + 2 <= N; i += 2) add_two(y + i * kW, sums[i], sums[i + 1]);
  }
#endif
  for (; i < N; ++i) round_to(y + i * kW, add(load(y + i * kW), sums[i]));
}
template <int N>
inline void add_sums(void* y, std::int64_t at, int dtype, const F* sums) {
  if (dtype == headrace::kF32) return add_to<N>(static_cast<float*>(y) + at, sums);
  if (dtype == headrace::kBF16) return add_to<N>(static_cast<bf16*>(y) + at, sums);
  add_to<N>(static_cast<fp16*>(y) + at, sums);
}

// The same of `count` tokens, n columns less what is no whole vector; how many columns that were.
template <class T>
inline int add_rows(void* to, const std::int32_t* tokens, int count, std::int64_t y_row,
                    std::int64_t first, int n, const float* acc, std::int64_t acc_row) {
  constexpr int kMost = 4;
  const int whole = n / kW * kW;
  for (int m = 0; m < count; ++m, acc += acc_row) {
    T* y = static_cast<T*>(to) + tokens[m] * y_row + first;
    int i = 0;
    for (F sums[kMost]; i + kMost * kW <= whole; i += kMost * kW) {
      for (int j = 0; j < kMost; ++j) sums[j] = load(acc + i + j * kW);
      add_to<kMost>(y + i, sums);
    }
    for (; i < whole; i += kW) {
      const F sum = load(acc + i);
      add_to<1>(y + i, &sum);
    }
  }
  return whole;
}

// Whether nothing but the sums is added.
inline bool is_plain(const headrace::LoraBlock& b) {
  bool plain = b.gain_row < 0;
  for (int w = 0; w < b.width; ++w) plain = plain && b.bias_rows[w] < 0;
  return plain;
}

// Adds columns [first, first + n) of the accumulated product of tokens [token, token + count) to
// their rows of y.
__attribute__((noinline)) void finish(const headrace::LoraArgs& a, const headrace::LoraBlock& b,
                                      int token, int count, std::int64_t first, int n,
                                      const float* acc, std::int64_t acc_row) {
  int done = 0;
  if (is_plain(b)) {
    const auto add = a.x_dtype == headrace::kF32    ? add_rows<float>
                     : a.x_dtype == headrace::kBF16 ? add_rows<bf16>
                                                    : add_rows<fp16>;
    done = add(a.y, b.tokens + token, count, a.y_row, first, n, acc, acc_row);
    if (done == n) return;
  }
  for (int m = token; m < token + count; ++m, acc += acc_row) {
    for (int i = done; i < n; i += kW) {
      const int some = n - i < kW ? n - i : kW;
      const std::int64_t at = first + i, y_at = b.tokens[m] * a.y_row + at;
      float lanes[kW];
      F sum = load(acc + i);
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
