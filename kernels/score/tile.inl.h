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

// The products of q[dim] with kW rows, each at its own address; twice, for bounds. Asks for the
// kW rows after them, where those are to come: rows side by side are no stream to a processor.
template <class T>
inline F dots(const float* q, const T* const* rows, std::int64_t dim, const float* q_low,
              const T* const* low, bool ahead) {
  F acc[kW];
  for (int i = 0; i < kW; ++i) acc[i] = zero();
  for (std::int64_t d = 0; d < dim; d += kW) {
    const F x = load(q + d);
    if (ahead && d * sizeof(T) % 64 == 0) {
      for (int i = 0; i < kW; ++i) __builtin_prefetch(rows[kW + i] + d);
    }
    for (int i = 0; i < kW; ++i) acc[i] = fma(x, load(rows[i] + d), acc[i]);
  }
  if (low) {
    for (std::int64_t d = 0; d < dim; d += kW) {
      if (ahead && d * sizeof(T) % 64 == 0) {
        for (int i = 0; i < kW; ++i) __builtin_prefetch(low[kW + i] + d);
      }
      const F x = load(q_low + d);
      for (int i = 0; i < kW; ++i) acc[i] = fma(x, load(low[i] + d), acc[i]);
    }
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
