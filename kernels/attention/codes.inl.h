// SPDX-License-Identifier: Apache-2.0
// The products of a tile of int8 codes in whole numbers.
#pragma once
#include "tile.inl.h"

#ifdef HEADRACE_WHOLE_DOTS

namespace {

// A row of queries or weights as whole numbers of D digits of 8 bits with a sign, the lowest first:
// of every four elements the four of each digit, in 16 bytes. Codes are multiplied as bytes without
// a sign, 128 more than they are, so sums of products begin at -128 times the sum of a digit: that
// of digit t lies at the end of the 16 bytes t.
struct Digits {
  const char* at;
  std::int64_t stride;  // bytes from row to row

  const char* of(int row, int four, int digit) const {
    return at + row * stride + 16 * four + 4 * digit;
  }
  const char* begin(int row, int digit) const { return of(row, digit, 3); }
};

// What to pull towards the second-level cache while a product runs: as many lines at every step as
// that reads. With nothing to pull, the same line again and again.
struct Pull {
  const char* at;
  std::int64_t line;  // 64, or 0

  template <int N>
  void call() {
    __builtin_prefetch(at, 0, 2);
    if (N == 2) __builtin_prefetch(at + line, 0, 2);
    at += N * line;
  }
};

// The largest number that is made: a little less than fits, for what rounding adds.
template <int D>
constexpr float kMostWhole = D == 2 ? 32639.f : 8355700.f;

template <int D>
inline F whole_sum(const Whole* digits) {
  const F low = to_float(join_digits(digits[1], digits[0]));
  if constexpr (D == 2) return low;
  return fma(to_float(digits[D - 1]), set1(65536.f), low);
}

// Sums of M rows of digits by N vectors of codes.
template <int M, int N, int D>
struct WholeSums {
  Whole at[M][N][D];

  explicit WholeSums(const Digits& rows) {
    for (int m = 0; m < M; ++m) {
      for (int t = 0; t < D; ++t) {
        for (int n = 0; n < N; ++n) at[m][n][t] = set1_whole(rows.begin(m, t));
      }
    }
  }

  // Adds the products of fours [first, last), with the codes that `read` gives.
  template <class Read>
  void add(const Digits& rows, int first, int last, const Read& read, Pull& pull) {
    Whole acc[M][N][D];
    Pull ahead = pull;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 6
      for (int i = 0; i < N * D; ++i) acc[m][i / D][i % D] = at[m][i / D][i % D];
    }
    for (int i = first; i < last; ++i) {
      Quads codes[N];
      read(i, codes);
      ahead.call<N>();
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
        for (int t = 0; t < D; ++t) {
          const Quads x = set1_quad(rows.of(m, i, t));
          for (int n = 0; n < N; ++n) acc[m][n][t] = dot8(codes[n], x, acc[m][n][t]);
        }
      }
    }
    pull = ahead;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 6
      for (int i = 0; i < N * D; ++i) at[m][i / D][i % D] = acc[m][i / D][i % D];
    }
  }
};

// Fours of rows of codes that are taken together: those of a whole tile would be asked for in half
// of the time that it takes to pull them.
constexpr int kFours = 8;

// out[M][columns] (+)= units[M] * rows[M] * codes, of 64 columns or of 16.
template <int M, int D, bool Accumulate, bool Wide>
inline void block_codes(const Digits& rows, int first, int last, const std::int8_t* codes,
                        std::int64_t ld, float* out, std::int64_t ldo, const float* units,
                        Pull& pull) {
  F sums[M][4];
  if constexpr (Wide) {
    // Half of the columns at a time: more sums do not fit the registers.
    const auto low = [=](int i, Quads* to) { quad_codes<0>(codes + 4 * i * ld, ld, to); };
    const auto high = [=](int i, Quads* to) { quad_codes<2>(codes + 4 * i * ld, ld, to); };
    WholeSums<M, 2, D> front(rows), back(rows);
    for (int i = first; i < last; i += kFours) {
      const int upto = i + kFours < last ? i + kFours : last;
      front.add(rows, i, upto, low, pull);
      back.add(rows, i, upto, high, pull);
    }
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < 2; ++n) {
        sums[m][n] = whole_sum<D>(front.at[m][n]);
        sums[m][2 + n] = whole_sum<D>(back.at[m][n]);
      }
      transpose_lanes(sums[m]);
    }
  } else {
    const auto read = [=](int i, Quads* to) { *to = quad_codes(codes + 4 * i * ld, ld); };
    WholeSums<M, 1, D> all(rows);
    all.add(rows, first, last, read, pull);
    for (int m = 0; m < M; ++m) sums[m][0] = whole_sum<D>(all.at[m][0]);
  }
  for (int m = 0; m < M; ++m) {
    const F unit = set1(units[m]);
    for (int n = 0; n < (Wide ? 4 : 1); ++n) {
      float* to = out + m * ldo + n * kW;
      store(to, Accumulate ? fma(sums[m][n], unit, load(to)) : mul(sums[m][n], unit));
    }
  }
}

template <int M, int D, bool Accumulate, bool Wide>
inline void rows_codes(Digits rows, int first, int last, const std::int8_t* codes, std::int64_t ld,
                       float* out, std::int64_t ldo, int count, const float* units, Pull& pull) {
  for (; count >= M; count -= M, rows.at += M * rows.stride, out += M * ldo, units += M) {
    block_codes<M, D, Accumulate, Wide>(rows, first, last, codes, ld, out, ldo, units, pull);
    pull.line = 0;
  }
  if constexpr (M > 1) {
    if (count) {
      rows_codes<M - 1, D, Accumulate, Wide>(rows, first, last, codes, ld, out, ldo, count, units,
                                             pull);
    }
  }
}

// out[count][cols] (+)= units * rows * codes[4 * first, 4 * last)[cols], cols a multiple of kW.
template <int D, bool Accumulate>
inline void product_codes(const Digits& rows, int first, int last, const std::int8_t* codes,
                          std::int64_t ld, float* out, std::int64_t ldo, int count, int cols,
                          const float* units, const void* next) {
  constexpr int kWide = 4 * kW, kRows = 4;
  Pull pull{next ? static_cast<const char*>(next) : reinterpret_cast<const char*>(codes), 0};
  for (int n = 0; n < cols;) {
    pull.line = next ? 64 : 0;
    if (n + kWide <= cols) {
      rows_codes<kRows, D, Accumulate, true>(rows, first, last, codes + n, ld, out + n, ldo, count,
                                             units, pull);
      n += kWide;
    } else {
      rows_codes<kRows, D, Accumulate, false>(rows, first, last, codes + n, ld, out + n, ldo, count,
                                              units, pull);
      n += kW;
    }
  }
}

// Products of int8 codes in whole numbers, exact but for the rounding of queries to 24 bits and of
// a tile's weights to 16, each of the largest of its row. For results that are rounded to bf16.
struct Coded {
  static constexpr bool packs_pairs = false;
  // Turns N rows into digits, in place; a unit is what one of the lowest digit counts.
  template <int D, int N>
  static void whole(float* rows, std::int64_t apart, int count, float* units) {
    Whole top[N];
    for (int r = 0; r < N; ++r) {
      top[r] = no_whole();
      for (int i = 0; i < count; i += kW) top[r] = most_bits(load(rows + r * apart + i), top[r]);
    }
    float most[N];
    hmax_bits<N>(top, most);
    for (int r = 0; r < N; ++r) {
      float* row = rows + r * apart;
      const bool finite = most[r] < kInf;
      const F by = set1(most[r] > 0x1p-100f && finite ? kMostWhole<D> / most[r] : 0.f);
      units[r] = finite ? most[r] / kMostWhole<D> : __builtin_nanf("");
      Whole sums = no_whole();
      for (int i = 0; i < count; i += kW) {
        const Quads made = digits<D>(mul(load(row + i), by));
        store_quads(row + i, made);
        sums = less_digits(made, sums);
      }
      alignas(64) float begin[kW];
      store_quads(begin, {sum_lanes(sums).v});
      for (int t = 0; t < D; ++t) row[4 * t + 3] = begin[t];
    }
  }
  static void query(float* row, int dim, float* unit) { whole<3, 1>(row, 0, dim, unit); }
  static void raw_query(const void*, std::int64_t, int, float*) {}
  static void weights(float* s, int cols, int rows, float* units) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) whole<2, 4>(s + r * kTile, kTile, cols, units + r);
    for (; r < rows; ++r) whole<2, 1>(s + r * kTile, kTile, cols, units + r);
  }
  static void logits(const float* q, const float* units, int dim, const std::int8_t* keys,
                     std::int64_t ld, float* s, int rows, int cols, float, bool, const void* next,
                     std::int64_t) {
    const Digits digits{reinterpret_cast<const char*>(q), 4 * dim};
    product_codes<3, false>(digits, 0, dim / 4, keys, ld, s, kTile, rows, cols, units, next);
  }
  // Fours of tokens may begin before the first and end behind the last, in the same page: weights
  // are 0 there.
  static void values(const float* s, const float* units, int column, const std::int8_t* v,
                     std::int64_t ld, int tokens, float* o, int rows, int dim, const void* next,
                     std::int64_t) {
    const Digits digits{reinterpret_cast<const char*>(s), 4 * kTile};
    product_codes<2, true>(digits, column / 4, (column + tokens + 3) / 4, v - column * ld, ld, o,
                           dim, rows, dim, units, next);
  }
};

}  // namespace

#endif
