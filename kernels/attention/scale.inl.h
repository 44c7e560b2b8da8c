// SPDX-License-Identifier: Apache-2.0
// Scales of quantised pages, and the turn of a query: what a view adds around the products of a
// tile.
#pragma once
#include "tile.inl.h"

namespace {

// Scales of the slots of one page and head; null for floats.
struct SlotScales {
  const float* at;
  int slot;    // 1, or 0: one for all
  float unit;  // of what load_row gives
};

template <class T>
inline SlotScales scales_of(const headrace::Scales& scales, const std::int64_t* entry, int head) {
  if (!scales.at) return {nullptr, 0, 1.f};
  return {scales.at + entry[headrace::kPage] * scales.page + head * scales.head, scales.slot,
          kRowUnit<T>};
}

inline F scale_at(const SlotScales& scales, std::int64_t slot) {
  return mul(scales.slot ? load(scales.at + slot) : set1(scales.at[0]), set1(scales.unit));
}

// What the next logits will be scaled by, on its way while they are made.
inline void pull_scales(const SlotScales& scales, std::int64_t base, int cols) {
  for (int j = 0; scales.at && j < cols; j += 64 / static_cast<int>(sizeof(float))) {
    __builtin_prefetch(scales.at + scales.slot * (base + j));
  }
}

// Logits of slots base, base + 1, ... against codes become logits against keys.
HEADRACE_ONCE void scale_logits(float* s, int rows, const SlotScales& scales, std::int64_t base,
                                int cols) {
  for (int j = 0; j < cols; j += kW) {
    const F by = scale_at(scales, base + j);
    for (int r = 0; r < rows; ++r) store(s + r * kTile + j, mul(load(s + r * kTile + j), by));
  }
}

// Weights of values become weights of their codes, of rows that see columns [lo, hi); the others
// stay 0 whatever their scale is. The denominator has been summed before.
HEADRACE_ONCE void scale_weights(float* s, int rows, const SlotScales& scales, std::int64_t base,
                                 int cols, int lo, int hi) {
  const bool whole = lo <= 0 && hi >= cols;
  for (int j = 0; j < cols; j += kW) {
    const F by = scale_at(scales, base + j);
    for (int r = 0; r < rows; ++r) {
      const F scaled = mul(load(s + r * kTile + j), by);
      store(s + r * kTile + j, whole ? scaled : keep(scaled, zero(), lo - j, hi - j));
    }
  }
}

// cos and sin of a query at `pos` [axes] for the keys of an entry.
inline void query_angles(const headrace::Rope& rope, const std::int64_t* pos,
                         const std::int64_t* entry, float* c, float* s) {
  std::int64_t distance[3] = {0, 0, 0};
  for (int x = 0; x < rope.axes; ++x) distance[x] = headrace::distance_along(x, pos, entry);
  angles(distance, rope, c, s);
}

}  // namespace
