// SPDX-License-Identifier: Apache-2.0
// Which slots a query sees, and at what distance: the integer half of a view, the same on CPU and
// GPU.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define HEADRACE_HD __host__ __device__ inline
#else
#define HEADRACE_HD inline
#endif

namespace headrace {
namespace {

constexpr std::int64_t kUnlimited = std::int64_t{1} << 62;

struct Range {
  std::int64_t lo, hi;
};

HEADRACE_HD std::int64_t clamp(std::int64_t x, std::int64_t lo, std::int64_t hi) {
  return x < lo ? lo : x > hi ? hi : x;
}

// Slots [lo, hi) of an entry of `count` consecutive keys whose first has order `order`, seen by
// queries of orders oldest..newest (by any of them; by the one, when they are equal).
HEADRACE_HD Range visible(std::int64_t oldest, std::int64_t newest, std::int64_t order,
                          std::int64_t reach, std::int64_t count) {
  const std::int64_t back = reach < kUnlimited ? reach : kUnlimited;  // so that nothing overflows
  const std::int64_t lo = clamp(oldest - back + 1 - order, 0, count);
  return {lo, clamp(newest - order + 1, lo, count)};
}

// Angle steps between a query and the origin of an entry.
HEADRACE_HD std::int64_t distance(std::int64_t q_pos, std::int64_t origin, std::int64_t cap) {
  const std::int64_t d = q_pos - origin;
  return d < cap ? d : cap;
}

// The same along one of up to three axes: q_pos and the columns (origin, cap) of each axis.
HEADRACE_HD std::int64_t distance_along(int axis, const std::int64_t* q_pos,
                                        const std::int64_t* entry) {
  const std::int64_t* pair = entry + (axis == 0 ? 3 : 5 + 2 * axis);
  return distance(q_pos[axis], pair[0], pair[1]);
}

// Whether a query turns the same way for two entries.
HEADRACE_HD bool same_turn(const std::int64_t* a, const std::int64_t* b, int axes) {
  bool same = a[3] == b[3] && a[4] == b[4];
  for (int i = 7; i < 5 + 2 * axes; ++i) same = same && a[i] == b[i];
  return same;
}

// What queries see at `position` of a dense [Lq, Lk] problem, bottom-right aligned: sinks are
// the keys [0, sinks), the rest are cut by window and causality.
HEADRACE_HD Range visible_sinks(std::int64_t position, std::int64_t sinks, std::int64_t k_len,
                                bool causal) {
  const std::int64_t all = sinks < k_len ? sinks : k_len;
  return {0, causal ? clamp(position + 1, 0, all) : all};
}
HEADRACE_HD Range visible_window(std::int64_t oldest, std::int64_t newest, std::int64_t sinks,
                                 std::int64_t window, std::int64_t k_len, bool causal) {
  const std::int64_t lo = clamp(oldest - window + 1, sinks < k_len ? sinks : k_len, k_len);
  return {lo, clamp(causal ? newest + 1 : newest + window, lo, k_len)};
}

}  // namespace
}  // namespace headrace
