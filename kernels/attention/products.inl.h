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
  static void query(float*, int, float*) {}
  static void raw_query(const void*, std::int64_t, int, float*) {}
  static void weights(float*, int, float*) {}
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
};

// Adds a tile's weighted values to the rows, `group` of them per position. v starts at the key of
// `column`. A row multiplies the values that other rows of the block see by weight 0, which is
// nothing unless they are NaN or infinite: then `ranges` holds each position's own keys [lo, hi)
// from there, and only those are multiplied.
template <class P, class T>
inline void add_values(const float* s, const float* units, int column, const T* v,
                       std::int64_t v_row, int tokens, const Rows& st, int group, const int* ranges,
                       const void* next = nullptr, std::int64_t bytes = 0) {
  if (!ranges) {
    return P::values(s, units, column, v, v_row, tokens, st.o, st.rows, st.dim, next, bytes);
  }
  for (int i = 0; i * group < st.rows; ++i) {
    const int lo = ranges[2 * i], hi = ranges[2 * i + 1];
    if (lo >= hi) continue;
    P::values(s + i * group * kTile, units + i * group, column + lo, v + lo * v_row, v_row, hi - lo,
              st.o + static_cast<std::int64_t>(i) * group * st.dim, group, st.dim, nullptr, 0);
  }
}

}  // namespace
