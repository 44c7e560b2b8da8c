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
// stream to a processor; asks for four that come later, if any.
template <class T>
inline void four_dots(const float* q, const T* const* rows, const T* const* later, std::int64_t dim,
                      F* sums) {
  F a = sums[0], b = sums[1], c = sums[2], e = sums[3];
  for (std::int64_t d = 0; d < dim; d += kW) {
    if (later && d * sizeof(T) % 64 == 0) {
      for (int i = 0; i < 4; ++i) __builtin_prefetch(later[i] + d);
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

// columns[d][j] = rows[j][d] for j < n, 0 up to kScoreTile.
template <class T>
inline void to_columns(const T* const* rows, std::int64_t n, std::int64_t dim, float* columns) {
  for (std::int64_t j = 0; j < kScoreTile; j += kW) {
    for (std::int64_t d = 0; d < dim; d += kW) {
      F block[kW];
      for (int i = 0; i < kW; ++i) block[i] = j + i < n ? load(rows[j + i] + d) : zero();
      transpose(block);
      for (int i = 0; i < kW; ++i) store(columns + (d + i) * kScoreTile + j, block[i]);
    }
  }
}

template <int M, int N>
inline void product_block(const float* q, std::int64_t q_row, const float* columns,
                          std::int64_t dim, bool more, float* s) {
  F acc[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = more ? load(s + m * kScoreTile + n * kW) : zero();
  }
  for (std::int64_t d = 0; d < dim; ++d) {
    F row[N];
    for (int n = 0; n < N; ++n) row[n] = load(columns + d * kScoreTile + n * kW);
    for (int m = 0; m < M; ++m) {
      const F x = set1(q[m * q_row + d]);
      for (int n = 0; n < N; ++n) acc[m][n] = fma(x, row[n], acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) store(s + m * kScoreTile + n * kW, acc[m][n]);
  }
}

template <int M>
inline void product_rows(const float* q, std::int64_t q_row, const float* columns, std::int64_t n,
                         std::int64_t dim, bool more, float* s) {
  std::int64_t j = 0;
  for (; j + kTileCols * kW <= kScoreTile && j < n; j += kTileCols * kW) {
    product_block<M, kTileCols>(q, q_row, columns + j, dim, more, s + j);
  }
}

// s[m][j] = q[m] . column j (added to what is there, with `more`) for m < count, j < n at least.
inline void products(const float* q, std::int64_t q_row, int count, const float* columns,
                     std::int64_t n, std::int64_t dim, bool more, float* s) {
  int m = 0;
  for (; m + kTileRows <= count; m += kTileRows) {
    product_rows<kTileRows>(q + m * q_row, q_row, columns, n, dim, more, s + m * kScoreTile);
  }
  for (; m < count; ++m) {
    product_rows<1>(q + m * q_row, q_row, columns, n, dim, more, s + m * kScoreTile);
  }
}

}  // namespace
