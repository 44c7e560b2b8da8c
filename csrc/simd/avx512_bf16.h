// SPDX-License-Identifier: Apache-2.0
// AVX512-BF16 on top of AVX-512: dot products of pairs of bf16, two multiply-adds a lane. A product
// of two bf16 is exact in fp32 and the sums are fp32; subnormals count as zero.
#pragma once
#include "avx512_vnni.h"

#define HEADRACE_DOTS

namespace {

inline Pairs load_pairs(const void* p) { return {_mm512_loadu_si512(p)}; }
// Four pairs in every lane of four.
inline Pairs spread_pairs(const void* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
// The first n < 32 elements, 0 behind them.
inline Pairs load_part_pairs(const void* p, std::int64_t n) {
  return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1u), p)};
}
inline void store_pairs(void* p, Pairs a) { _mm512_storeu_si512(p, a.v); }
inline F dot(Pairs a, Pairs b, F c) { return {dot_bf16(c.v, a.v, b.v)}; }

// Pairs from N vectors of columns of two rows. Two vectors at a time come out woven: the first
// holds columns 0-3, 8-11, 16-19, 24-27 of the 32, the second the others. A vector without a
// partner keeps its order.
template <int N>
inline void pair_rows(const bf16* even, const bf16* odd, Pairs* out) {
  for (int n = 0; n + 1 < N; n += 2) {
    const __m512i a = _mm512_loadu_si512(even + n * 16);
    const __m512i b = _mm512_loadu_si512(odd + n * 16);
    out[n] = {_mm512_unpacklo_epi16(a, b)};
    out[n + 1] = {_mm512_unpackhi_epi16(a, b)};
  }
  if (N % 2) {
    const auto wide = [](const bf16* p) {
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    };
    const __m512i a = wide(even + (N - 1) * 16);
    const __m512i b = wide(odd + (N - 1) * 16);
    out[N - 1] = {_mm512_or_si512(a, _mm512_slli_epi32(b, 16))};
  }
}
// The same of one row, and zeros.
template <int N>
inline void pair_row(const bf16* even, Pairs* out) {
  const __m512i none = _mm512_setzero_si512();
  for (int n = 0; n + 1 < N; n += 2) {
    const __m512i a = _mm512_loadu_si512(even + n * 16);
    out[n] = {_mm512_unpacklo_epi16(a, none)};
    out[n + 1] = {_mm512_unpackhi_epi16(a, none)};
  }
  if (N % 2) {
    const bf16* last = even + (N - 1) * 16;
    out[N - 1] = {
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(last)))};
  }
}
// out[8] = pairs of 16 rows, a row a lane, from the first n <= 16 elements of each, and zeros.
inline void pair_columns(const bf16* rows, std::int64_t apart, int n, Pairs* out) {
  const __mmask16 some = static_cast<__mmask16>((1u << n) - 1u);
  const auto row = [&](int i) { return _mm256_maskz_loadu_epi16(some, rows + i * apart); };
  __m512i v[8], u[8];
  for (int i = 0; i < 8; ++i) {
    const int at = i % 4 + i / 4 * 8;  // and four further, in the other half
    v[i] = _mm512_inserti64x4(_mm512_castsi256_si512(row(at)), row(at + 4), 1);
  }
  for (int i = 0; i < 8; i += 2) {
    u[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    u[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      v[i + 2 * j] = _mm512_unpacklo_epi64(u[i + j], u[i + j + 2]);
      v[i + 2 * j + 1] = _mm512_unpackhi_epi64(u[i + j], u[i + j + 2]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = {_mm512_shuffle_i32x4(v[i], v[i + 4], 0x88)};
    out[i + 4] = {_mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd)};
  }
}
// Sums of columns in order become woven as above, and back.
template <int N>
inline void weave(F* sums) {
  for (int n = 0; n + 1 < N; n += 2) {
    const __m512 a = sums[n].v, b = sums[n + 1].v;
    sums[n] = {_mm512_shuffle_f32x4(a, b, 0x88)};
    sums[n + 1] = {_mm512_shuffle_f32x4(a, b, 0xdd)};
  }
}
template <int N>
inline void unweave(F* sums) {
  const __m512i low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i high = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  for (int n = 0; n + 1 < N; n += 2) {
    const __m512d a = _mm512_castps_pd(sums[n].v), b = _mm512_castps_pd(sums[n + 1].v);
    sums[n] = {_mm512_castpd_ps(_mm512_permutex2var_pd(a, low, b))};
    sums[n + 1] = {_mm512_castpd_ps(_mm512_permutex2var_pd(a, high, b))};
  }
}

// Codes of e4m3 without their sign as bf16 of 2^-8 of their value: the high bytes, then the low
// ones.
struct E4M3Bytes {
  alignas(64) std::uint8_t high[128];
  alignas(64) std::uint8_t low[128];

  constexpr E4M3Bytes() : high(), low() {
    for (int code = 0; code < 128; ++code) {
      int exponent = code >> 3, most = code & 7;  // of a subnormal: made normal
      if (exponent == 0 && most) {
        for (exponent = 1; most < 8; --exponent) most *= 2;
      }
      const int bits = code == 0x7f ? 0x7fc0 : most || exponent ? exponent * 128 + 0x3800 : 0;
      const int whole = code == 0x7f ? bits : bits + (most & 7) * 16;
      high[code] = static_cast<std::uint8_t>(whole >> 8);
      low[code] = static_cast<std::uint8_t>(whole & 0xff);
    }
  }
};
alignas(64) constexpr E4M3Bytes kE4M3Bytes;

// 64 codes as bf16, in lanes of 16: of each the first eight, then the others.
struct Codes64 {
  __m512i first, last;

  explicit Codes64(__m512i codes) {
    const __m512i sign = _mm512_set1_epi8(-128);
    const __m512i low = byte_of(kE4M3Bytes.low, codes);
    // high | (codes & sign)
    const __m512i high =
        _mm512_ternarylogic_epi32(byte_of(kE4M3Bytes.high, codes), codes, sign, 0xf8);
    first = _mm512_unpacklo_epi8(low, high);
    last = _mm512_unpackhi_epi8(low, high);
  }
};

// The same of codes of e4m3, as pair_rows: four vectors come out with lane i of vector j holding
// columns 16 i + 4 j of the 64 and the three behind it, fewer in order.
template <int N>
inline void pair_rows(const e4m3* even, const e4m3* odd, Pairs* out) {
  if constexpr (N == 4) {
    const Codes64 a(_mm512_loadu_si512(even)), b(_mm512_loadu_si512(odd));
    out[0] = {_mm512_unpacklo_epi16(a.first, b.first)};
    out[1] = {_mm512_unpackhi_epi16(a.first, b.first)};
    out[2] = {_mm512_unpacklo_epi16(a.last, b.last)};
    out[3] = {_mm512_unpackhi_epi16(a.last, b.last)};
  } else {
    for (int n = 0; n < N; ++n) {
      // Codes four by four, a four a lane: what is unpacked twice stays in order.
      const auto fours = [](const e4m3* p) {
        const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        const __m512i lanes = _mm512_castsi128_si512(codes);
        return _mm512_permutexvar_epi32(
            _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0), lanes);
      };
      const Codes64 a(fours(even + n * 16)), b(fours(odd + n * 16));
      out[n] = {_mm512_unpacklo_epi16(a.first, b.first)};
    }
  }
}

// Woven pairs of columns, put in order.
template <int N>
inline void unweave(Pairs* pairs) {
  F lanes[N];
  for (int n = 0; n < N; ++n) lanes[n] = {_mm512_castsi512_ps(pairs[n].v)};
  unweave<N>(lanes);
  for (int n = 0; n < N; ++n) pairs[n] = {_mm512_castps_si512(lanes[n].v)};
}

// The first n of 16 pairs, and zeros.
inline F load_first(const void* p, int n) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p)};
}

// high = a rounded to bf16, and the part of it that is lost, rounded too; none of what is not
// finite.
inline void split(F a, bf16* high, bf16* low) {
  const __m256i h = round_bf16(a.v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), h);
  const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  const __mmask16 finite =
      _mm512_cmp_ps_mask(_mm512_abs_ps(wide), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  const __m512 lost = _mm512_maskz_sub_ps(finite, a.v, wide);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), round_bf16(lost));
}
inline void narrow(F a, bf16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), round_bf16(a.v));
}

}  // namespace
