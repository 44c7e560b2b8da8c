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

// Logits of slots base, base + 1, ... against codes become logits against keys.
inline void scale_logits(float* s, const SlotScales& scales, std::int64_t base, int cols) {
  for (int j = 0; j < cols; j += kW) store(s + j, mul(load(s + j), scale_at(scales, base + j)));
}

// Weights of values become weights of their codes; columns outside [lo, hi) stay 0 whatever their
// scale is. The denominator has been summed before.
inline void scale_weights(float* s, const SlotScales& scales, std::int64_t base, int cols, int lo,
                          int hi) {
  for (int j = 0; j < cols; j += kW) {
    const F scaled = mul(load(s + j), scale_at(scales, base + j));
    store(s + j, keep(scaled, zero(), lo - j, hi - j));
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
