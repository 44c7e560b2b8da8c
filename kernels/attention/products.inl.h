// SPDX-License-Identifier: Apache-2.0
// The two products of a tile of keys, queries by keys and weights by values: as fp32 multiply-adds
// of widened values (Widened), as dot products of bf16 pairs (Paired) or of whole numbers (Coded).
#pragma once
#include "codes.inl.h"
#include "pairs.inl.h"
#include "tile.inl.h"

namespace {

// Rows of queries and weights are fp32. (Others may keep a unit of each row, of what it counts in.)
struct Widened {
  static constexpr bool packs_pairs = false;
  static constexpr bool packs_values = true;
  static void query(float*, int, float*) {}
  static void raw_query(const void*, std::int64_t, int, float*) {}
  static void weights(float*, int, int, float*) {}
  // s[rows][cols] = queries * keys[dim][ld]
  template <class T>
  static void logits(const float* q, const float*, int dim, const T* keys, std::int64_t ld,
                     float* s, int rows, int cols, float, bool, const void* next,
                     std::int64_t bytes) {
    product<false>(q, dim, keys, ld, dim, s, kTile, rows, cols, next, bytes);
  }
  template <class T>
  static void pack(const T* k, std::int64_t stride, int tokens, int dim, float* out) {
    pack_keys(k, stride, tokens, dim, out);
  }
  static void packed_logits(const float* q, int dim, const float* packed, float* s, int rows,
                            int cols, float, const void* next, std::int64_t bytes) {
    product<false>(q, dim, packed, kTile, dim, s, kTile, rows, cols, next, bytes);
  }
  // o[rows][dim] += weights[:, column:column + tokens] * values[tokens][ld]
  template <class T>
  static void values(const float* s, const float*, int column, const T* v, std::int64_t ld,
                     int tokens, float* o, int rows, int dim, const void* next,
                     std::int64_t bytes) {
    product<true>(s + column, kTile, v, ld, tokens, o, dim, rows, dim, next, bytes);
  }
  // The same of values packed as panels, from token `first` of the tile on.
  static void packed_values(const float* s, int column, const float* packed, int first, int tokens,
                            float* o, int rows, int dim, const void* next, std::int64_t bytes) {
    const char* at = static_cast<const char*>(next);
    for (int d = 0; d < dim; d += kPanel) {
      const int cols = dim - d < kPanel ? dim - d : kPanel;
      const std::int64_t part = bytes / dim * cols;
      product<true>(s + column, kTile, packed + d * kTile + first * cols, cols, tokens, o + d, dim,
                    rows, cols, at, part);
      if (at) at += part;
    }
  }
  // Panels [kTile][kPanel] of neighbouring columns, the last one as narrow as they are: a register
  // block reads one from end to end. In rows of a power of two they would share few sets of L1.
  template <class T>
  static void pack_values(const T* v, std::int64_t stride, int tokens, int dim, float* out) {
    for (int d = 0; d < dim; d += kPanel) {
      const int cols = dim - d < kPanel ? dim - d : kPanel;
      for (int t = 0; t < tokens; ++t) {
        for (int j = 0; j < cols; j += kW) {
          store(out + d * kTile + t * cols + j, load(v + t * stride + d + j));
        }
      }
    }
  }
};

#ifdef HEADRACE_DOTS
// Queries by keys as Widened has them, to the last digit of lse; weights by values as Paired.
struct Halves : Widened {
  static constexpr bool packs_values = false;
  static void weights(float* s, int cols, int rows, float* units) {
    Paired::weights(s, cols, rows, units);
  }
  template <class T>
  static void values(const float* s, const float* units, int column, const T* v, std::int64_t ld,
                     int tokens, float* o, int rows, int dim, const void* next,
                     std::int64_t bytes) {
    Paired::values(s, units, column, v, ld, tokens, o, rows, dim, next, bytes);
  }
};
#endif

// Adds a tile's weighted values to the rows, `group` of them per position, by `add`, which takes
// rows [row, row + rows) and tokens [first, first + tokens) of the tile. A row multiplies the
// values that other rows of the block see by weight 0, which is nothing unless they are NaN or
// infinite: then `ranges` holds each position's own keys [lo, hi), and only those are multiplied.
template <class Add>
inline void add_values(int rows, int tokens, int group, const int* ranges, const Add& add) {
  if (!ranges) return add(0, rows, 0, tokens);
  for (int i = 0; i * group < rows; ++i) {
    const int lo = ranges[2 * i], hi = ranges[2 * i + 1];
    if (lo < hi) add(i * group, group, lo, hi - lo);
  }
}

}  // namespace
