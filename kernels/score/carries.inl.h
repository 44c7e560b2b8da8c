// SPDX-License-Identifier: Apache-2.0
// Bits of many words counted where no instruction counts them: words of several rows are added up
// at every place first, digit by digit, and only the digits of these sums are counted.
#pragma once
#include <type_traits>

#include "args.h"
#include "csrc/simd/vec.h"

namespace {

constexpr int kBitWords = 16;  // words of a row at most

constexpr std::int64_t kBitsAhead = 1024;  // words

// Rows of words and what is asked of each: row i of `count` lies at words + i * step, and of its
// weights fold + i * fold_step has the signs, then the planes of their sizes from the highest down.
struct BitRows {
  const std::uint32_t *words, *fold;
  std::int64_t step, fold_step, count;
  int planes;
  bool more;  // after these words of every row come others
};

#if defined(HEADRACE_AVX512) || defined(HEADRACE_AVX2)
#if defined(HEADRACE_AVX512)
constexpr int kBitLanes = 16, kMostRows = 8;
struct Bits {
  __m512i v;
};
inline Bits load_bits(const std::uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bits same_bits(std::uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
// (a ^ b) & some; then the digits of a + b + c at every place: the lower one, and what it carries.
inline Bits differing(Bits a, Bits b, Bits some) {
  return {_mm512_ternarylogic_epi32(a.v, b.v, some.v, 0x28)};
}
inline Bits lower(Bits a, Bits b, Bits c) {
  return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0x96)};
}
inline Bits carried(Bits a, Bits b, Bits c) {
  return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0xe8)};
}
inline Bits lower(Bits a, Bits b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Bits carried(Bits a, Bits b) { return {_mm512_and_si512(a.v, b.v)}; }
// The bits of every byte; bytes added up; bytes added to words of 32 bits.
inline Bits count_bytes(Bits x) {
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i high = _mm512_and_si512(_mm512_srli_epi16(x.v, 4), low);
  return {_mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(x.v, low)),
                          _mm512_shuffle_epi8(table, high))};
}
inline Bits add_bytes(Bits a, Bits b) { return {_mm512_add_epi8(a.v, b.v)}; }
inline void add_counts(Bits bytes, std::int32_t* to) {
  const __m512i pairs = _mm512_maddubs_epi16(bytes.v, _mm512_set1_epi8(1));
  const __m512i n = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), n));
}
#else
constexpr int kBitLanes = 8, kMostRows = 4;  // of more the registers are too few
struct Bits {
  __m256i v;
};
inline Bits load_bits(const std::uint32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline Bits same_bits(std::uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
inline Bits lower(Bits a, Bits b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline Bits carried(Bits a, Bits b) { return {_mm256_and_si256(a.v, b.v)}; }
inline Bits differing(Bits a, Bits b, Bits some) { return carried(lower(a, b), some); }
inline Bits lower(Bits a, Bits b, Bits c) { return lower(lower(a, b), c); }
inline Bits carried(Bits a, Bits b, Bits c) {
  return {_mm256_or_si256(carried(a, b).v, carried(lower(a, b), c).v)};
}
inline Bits count_bytes(Bits x) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(x.v, 4), low);
  return {_mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x.v, low)),
                          _mm256_shuffle_epi8(table, high))};
}
inline Bits add_bytes(Bits a, Bits b) { return {_mm256_add_epi8(a.v, b.v)}; }
inline void add_counts(Bits bytes, std::int32_t* to) {
  __m256i* at = reinterpret_cast<__m256i*>(to);
  const __m256i pairs = _mm256_maddubs_epi16(bytes.v, _mm256_set1_epi8(1));
  const __m256i n = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), n));
}
#endif

// Of every byte the bits of G rows in planes whose weights double, and twice those of N words that
// a lower digit carried.
template <int P, int G, int N>
inline Bits weigh(const Bits (*planes)[G], const Bits* carries) {
  constexpr int kAll = N + (P > 0 ? G : 0), kOn = kAll / 2;
  Bits x[kAll], on[kOn + 1];
  for (int i = 0; i < N; ++i) x[i] = carries[i];
  for (int i = N; i < kAll; ++i) x[i] = planes[0][i - N];
  Bits sum = x[0];
  for (int i = 1; i + 1 < kAll; i += 2) {
    on[i / 2] = carried(sum, x[i], x[i + 1]);
    sum = lower(sum, x[i], x[i + 1]);
  }
  if constexpr (kAll % 2 == 0) {
    on[kOn - 1] = carried(sum, x[kAll - 1]);
    sum = lower(sum, x[kAll - 1]);
  }
  const Bits own = count_bytes(sum);
  if constexpr (kOn > 0 || P > 1) {
    const Bits more = weigh<(P > 0 ? P - 1 : 0), G, kOn>(planes + 1, on);
    return add_bytes(own, add_bytes(more, more));
  }
  return own;
}

// G rows from `first` on.
template <int P, int G>
inline void apart_of(const BitRows& b, std::int64_t first, std::int32_t* apart) {
  static_assert(8 * G * ((1 << P) - 1) < 256);  // a byte holds them
  const std::uint32_t *words = b.words + first * b.step, *fold = b.fold + first * b.fold_step;
  if (b.more) {
    for (int g = 0; g < G; ++g) {
      const std::uint32_t* coming = words + g * b.step + kBitsAhead;
      for (int i = 0; i < headrace::kScoreTile; i += 16) __builtin_prefetch(coming + i);
    }
  }
  Bits signs[G], digits[P][G];
  for (int g = 0; g < G; ++g) {
    signs[g] = same_bits(fold[g * b.fold_step]);
    for (int p = 0; p < P; ++p) digits[p][g] = same_bits(fold[g * b.fold_step + P - p]);
  }
  for (int i = 0; i < headrace::kScoreTile; i += kBitLanes) {
    Bits planes[P][G];
    for (int g = 0; g < G; ++g) {
      const Bits own = load_bits(words + g * b.step + i);
      for (int p = 0; p < P; ++p) planes[p][g] = differing(own, signs[g], digits[p][g]);
    }
    add_counts(weigh<P, G, 0>(planes, nullptr), apart + i);
  }
}

template <int P>
inline void apart_planes(const BitRows& b, std::int32_t* apart) {
  constexpr int kMany = P < 3 ? kMostRows : P < 4 ? 4 : P < 5 ? 2 : 1;
  std::int64_t r = 0;
  for (; r + kMany <= b.count; r += kMany) apart_of<P, kMany>(b, r, apart);
  const auto some = [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    if constexpr (kRows < kMany) {
      if (!((b.count - r) & kRows)) return;
      apart_of<P, kRows>(b, r, apart);
      r += kRows;
    }
  };
  some(std::integral_constant<int, 4>());
  some(std::integral_constant<int, 2>());
  some(std::integral_constant<int, 1>());
}

inline void apart_carried(const BitRows& b, std::int32_t* apart) {
  if (b.planes == 1) return apart_planes<1>(b, apart);
  if (b.planes == 2) return apart_planes<2>(b, apart);
  if (b.planes == 3) return apart_planes<3>(b, apart);
  if (b.planes == 4) return apart_planes<4>(b, apart);
  if (b.planes == 5) return apart_planes<5>(b, apart);
  // A plane at a time, the first one highest.
  for (std::int64_t r = 0; r < b.count; ++r) {
    alignas(64) std::int32_t sum[headrace::kScoreTile] = {};
    std::uint32_t by[2] = {b.fold[r * b.fold_step], 0};
    for (int p = 0; p < b.planes; ++p) {
      by[1] = b.fold[r * b.fold_step + 1 + p];
      for (std::int32_t& n : sum) n *= 2;
      apart_of<1, 1>({b.words + r * b.step, by, 0, 0, 1, 1, b.more && p == 0}, 0, sum);
    }
    for (int j = 0; j < headrace::kScoreTile; ++j) apart[j] += sum[j];
  }
}
#endif

}  // namespace
