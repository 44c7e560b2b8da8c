// SPDX-License-Identifier: Apache-2.0
// Products of query rows with a tile of stored rows: straight from memory for a few rows, from
// columns in fp32 for many. Every sum adds in an order that depends on the dimensions alone.
#pragma once
#include "args.h"
#include "csrc/simd/vec.h"

namespace {

using headrace::kScoreTile;

constexpr float kInf = __builtin_inff();
constexpr int kTileCols = F::registers == 32 ? 4 : 2;  // vectors of columns in one product
constexpr int kTileRows = F::registers == 32 ? 6 : 4;

// Adds the products of q[dim] with four rows. Few rows at a time, since rows side by side are no
// stream to a processor; asks for four that come later, if any, in the second-level cache: the
// first has fewer buffers for what is on its way.
template <class T>
inline void four_dots(const float* q, const T* const* rows, const T* const* later, std::int64_t dim,
                      F* sums) {
  F a = sums[0], b = sums[1], c = sums[2], e = sums[3];
  for (std::int64_t d = 0; d < dim; d += kW) {
    if (later && d * sizeof(T) % 64 == 0) {
      for (int i = 0; i < 4; ++i) __builtin_prefetch(later[i] + d, 0, 2);
    }
    const F x = load(q + d);
    a = fma(x, load(rows[0] + d), a);
    b = fma(x, load(rows[1] + d), b);
    c = fma(x, load(rows[2] + d), c);
    e = fma(x, load(rows[3] + d), e);
  }
  sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = e;
}

constexpr int kAhead = 2 * kW;  // rows
constexpr int kFew = 8;         // rows of queries that read a tile in place

// The products of q[dim] with kW rows, each at its own address; twice, for bounds. `ahead`: rows
// up to kAhead further on are to come.
template <class T>
inline F dots(const float* q, const T* const* rows, std::int64_t dim, const float* q_low,
              const T* const* low, bool ahead) {
  F acc[kW];
  for (int i = 0; i < kW; ++i) acc[i] = zero();
  for (int i = 0; i < kW; i += 4) {
    four_dots(q, rows + i, ahead ? rows + kAhead + i : nullptr, dim, acc + i);
    if (low) four_dots(q_low, low + i, ahead ? low + kAhead + i : nullptr, dim, acc + i);
  }
  transpose(acc);
  for (int step = kW / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) acc[i] = add(acc[i], acc[i + step]);
  }
  return acc[0];
}

// Rows of queries that meet a stored row together, which is then widened once.
constexpr int kTogether = F::registers == 32 ? 4 : 2;

// s[m][j] = q[m] . rows[j] for m < M, j < kW; the sums are those of `dots`.
template <int M, class T>
inline void dots_block(const float* q, const T* const* rows, std::int64_t dim, bool ahead,
                       float* s) {
  F all[M][kW];
  for (int i = 0; i < kW; i += 4) {
    F acc[M][4];
    for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = acc[m][2] = acc[m][3] = zero();
    for (std::int64_t d = 0; d < dim; d += kW) {
      if (ahead && d * sizeof(T) % 64 == 0) {
        for (int k = 0; k < 4; ++k) __builtin_prefetch(rows[kAhead + i + k] + d, 0, 2);
      }
      const F a = load(rows[i] + d), b = load(rows[i + 1] + d);
      const F c = load(rows[i + 2] + d), e = load(rows[i + 3] + d);
      for (int m = 0; m < M; ++m) {
        const F x = load(q + m * dim + d);
        acc[m][0] = fma(x, a, acc[m][0]);
        acc[m][1] = fma(x, b, acc[m][1]);
        acc[m][2] = fma(x, c, acc[m][2]);
        acc[m][3] = fma(x, e, acc[m][3]);
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int k = 0; k < 4; ++k) all[m][i + k] = acc[m][k];
    }
  }
  for (int m = 0; m < M; ++m) {
    transpose(all[m]);
    for (int step = kW / 2; step > 0; step /= 2) {
      for (int i = 0; i < step; ++i) all[m][i] = add(all[m][i], all[m][i + step]);
    }
    store(s + m * kScoreTile, all[m][0]);
  }
}

// s[m][j] = q[m] . rows[j] for m < count, j < n; straight from memory. `ahead` as in `dots`.
template <class T>
inline void dots_tile(const float* q, int count, const T* const* rows, int n, std::int64_t dim,
                      bool ahead, float* s) {
  for (int m = 0; m < count; m += kTogether) {
    const bool first = ahead && m == 0;
    for (int j = 0; j < n; j += kW) {
      float* to = s + m * kScoreTile + j;
      switch (count - m < kTogether ? count - m : kTogether) {
        case 1:
          dots_block<1>(q + m * dim, rows + j, dim, first, to);
          break;
        case 2:
          dots_block<2>(q + m * dim, rows + j, dim, first, to);
          break;
        case 3:
          dots_block < kTogether<3 ? 1 : 3>(q + m * dim, rows + j, dim, first, to);
          break;
        default:
          dots_block<kTogether>(q + m * dim, rows + j, dim, first, to);
      }
    }
  }
}

// columns[d][j] = rows[j][d] for j < n, 0 up to kScoreTile.
template <class T>
inline void to_columns(const T* const* rows, std::int64_t n, std::int64_t dim, float* columns) {
  for (std::int64_t j = 0; j < kScoreTile; j += kW) {
    for (std::int64_t d = 0; d < dim; d += kW) {
      F block[kW];
      for (int i = 0; i < kW; ++i) block[i] = j + i < n ? load(rows[j + i] + d) : zero();
      if (j < n) transpose(block);
      for (int i = 0; i < kW; ++i) store(columns + (d + i) * kScoreTile + j, block[i]);
    }
  }
}

// What a column is made of: a number to a word, or, with instructions for these, two of bf16.
struct Singles {
  using Words = F;
  static F column(const float* p) { return load(p); }
  static F query(const float* p) { return set1(*p); }
  static F add(F x, F y, F sum) { return fma(x, y, sum); }
};
#ifdef HEADRACE_DOTS
constexpr bool kDots = true;
struct Doubles {
  using Words = Pairs;
  static Pairs column(const float* p) { return load_pairs(p); }
  static Pairs query(const float* p) { return set1_pair(reinterpret_cast<const bf16*>(p)); }
  static F add(Pairs x, Pairs y, F sum) { return dot(x, y, sum); }
};
#else
constexpr bool kDots = false;
using Doubles = Singles;
#endif

// To a level that has them no other rows come, and none of sign bits.
constexpr bool kBits = !kDots;

// f of an element of the dtype.
template <class Function>
inline void by_type(int dtype, const Function& f) {
  if constexpr (!kDots) {
    if (dtype == headrace::kF32) return f(float{});
    if (dtype == headrace::kF16) return f(fp16{});
  }
  f(bf16{});
}

// Whether rows of this dtype can be taken two elements at a time.
inline bool in_pairs(int dtype, std::int64_t dim) {
  return kDots && dtype == headrace::kBF16 && dim % (2 * kW) == 0;
}

// Columns of dim / 2 words.
template <class T>
inline void to_pairs(const T* const* rows, std::int64_t n, std::int64_t dim, float* columns) {
  const float* words[kScoreTile];
  for (int j = 0; j < kScoreTile; ++j) words[j] = reinterpret_cast<const float*>(rows[j]);
  to_columns(words, n, dim / 2, columns);
}

template <int M, int N, class Of>
inline void product_block(const float* q, std::int64_t q_row, const float* columns,
                          std::int64_t dim, bool more, float* s) {
  F acc[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = zero();
  }
  if (more) {
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < N; ++n) acc[m][n] = load(s + m * kScoreTile + n * kW);
    }
  }
  for (std::int64_t d = 0; d < dim; ++d) {
    typename Of::Words row[N];
    for (int n = 0; n < N; ++n) row[n] = Of::column(columns + d * kScoreTile + n * kW);
    for (int m = 0; m < M; ++m) {
      const auto x = Of::query(q + m * q_row + d);
      for (int n = 0; n < N; ++n) acc[m][n] = Of::add(x, row[n], acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) store(s + m * kScoreTile + n * kW, acc[m][n]);
  }
}

template <int M, class Of>
inline void product_rows(const float* q, std::int64_t q_row, const float* columns, std::int64_t n,
                         std::int64_t dim, bool more, float* s) {
  for (std::int64_t j = 0; j < n; j += kTileCols * kW) {
    if (n - j > kW) {
      product_block<M, kTileCols, Of>(q, q_row, columns + j, dim, more, s + j);
    } else {
      product_block<M, 1, Of>(q, q_row, columns + j, dim, more, s + j);
    }
  }
}

// `product_rows` of 1 to M rows.
template <int M, class Of>
inline void product_rest(const float* q, std::int64_t q_row, int count, const float* columns,
                         std::int64_t n, std::int64_t dim, bool more, float* s) {
  if (count == M) return product_rows<M, Of>(q, q_row, columns, n, dim, more, s);
  if constexpr (M > 1) product_rest<M - 1, Of>(q, q_row, count, columns, n, dim, more, s);
}

constexpr std::int64_t kDeep = 64;  // words of columns that a first-level cache holds

// Rows that are to come: asked for a few lines at a time while there is something to compute, for
// rows side by side are no stream to a processor.
class Coming {
 public:
  // n rows of `dim` elements, in the steps that `products` takes over `count` rows of `words`.
  template <class T>
  Coming(const T* const* rows, int n, std::int64_t dim, int count, std::int64_t words)
      : rows_(reinterpret_cast<const char* const*>(rows)),
        lines_(static_cast<int>((dim * sizeof(T) + 63) / 64)),
        left_(n * lines_) {
    const int deep = static_cast<int>((words + kDeep - 1) / kDeep);
    const int steps = (count + kTileRows - 1) / kTileRows * deep;
    const int each = (left_ + steps - 1) / steps;
    each_ = each < kMost ? each : kMost;
  }
  void some() {
    const int n = each_ < left_ ? each_ : left_;
    left_ -= n;
    for (int i = 0; i < n; ++i) {
      __builtin_prefetch(*rows_ + 64 * line_);
      if (++line_ < lines_) continue;
      line_ = 0;
      ++rows_;
    }
  }

 private:
  static constexpr int kMost = 32;
  const char* const* rows_;
  int lines_, left_, each_, line_ = 0;
};

// s[m][j] = q[m] . column j (added to what is there, with `more`) for m < count, j < n at least;
// q_row and dim count words. A sum that goes on from memory, deeper in the columns, has the bits of
// one that stays in a register.
template <class Of = Singles>
inline void products(const float* q, std::int64_t q_row, int count, const float* columns,
                     std::int64_t n, std::int64_t dim, bool more, float* s,
                     Coming* coming = nullptr) {
  for (std::int64_t d = 0; d < dim; d += kDeep, more = true) {
    const std::int64_t deep = dim - d < kDeep ? dim - d : kDeep;
    const float *from = q + d, *some = columns + d * kScoreTile;
    int m = 0;
    for (; m + kTileRows <= count; m += kTileRows) {
      if (coming) coming->some();
      product_rows<kTileRows, Of>(from + m * q_row, q_row, some, n, deep, more, s + m * kScoreTile);
    }
    if (m < count) {
      if (coming) coming->some();
      product_rest<kTileRows - 1, Of>(from + m * q_row, q_row, count - m, some, n, deep, more,
                                      s + m * kScoreTile);
    }
  }
}

}  // namespace
