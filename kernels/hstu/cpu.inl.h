// SPDX-License-Identifier: Apache-2.0
// Pointwise attention of a block of rows: products, silu, products; only visible tiles are read.
// Sums run in the order of keys within a cut, then over cuts; keys that a row does not see add an
// exact 0. So a row's bits depend neither on the block it fell in, nor on where its keys are kept.
#pragma once
#include "args.h"
#include "kernels/attention/products.inl.h"
#include "visible.h"

namespace {

using headrace::HstuArgs;
using headrace::HstuItem;
using headrace::HstuRun;
using headrace::HstuSeen;
using headrace::kHstuRows;
using headrace::Range;

constexpr int kParts = 3;
constexpr int kPacked = 32;  // rows that are worth widening values for once
constexpr std::int64_t kFar = std::int64_t{1} << 62;

// x / (1 + e^-x), by the exponential that cannot overflow.
inline F silu(F x) {
  const F low = min(zero(), x), high = max(zero(), x);
  const F e = exp2(mul(sub(low, high), set1(kLog2e)));
  return div(fma(low, e, high), add(set1(1.f), e));
}

inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Orders that a row sees as a sink, in its window, as itself.
inline Range part_of(const HstuSeen& s, int part) {
  if (part == 0) return {0, s.sinks};
  if (part == 1) return {s.lo, s.hi};
  return {s.self, s.self < 0 ? s.self : s.self + 1};
}

struct HstuBlock {
  HstuSeen seen[kHstuRows];
  Range hull[kParts];  // of every part, over the rows
  float *q, *s, *keys, *values;
};

// One tile: `tokens` keys from row `at` on, the first of which has order `order`.
template <class T>
inline void hstu_tile(const HstuArgs& a, const HstuItem& it, const HstuBlock& b, const Rows& st,
                      int part, std::int64_t at, std::int64_t order, int tokens, bool careful) {
  const int cols = (tokens + kW - 1) / kW * kW;
  const T* v = static_cast<const T*>(a.v) + at * a.v_row + it.head * a.v_head;
  pack_keys(static_cast<const T*>(a.k) + at * a.k_row + it.head * a.k_head, a.k_row, tokens, a.dim,
            b.keys);
  product<false>(b.q, a.dim, b.keys, kTile, a.dim, b.s, kTile, it.rows, cols);
  for (int r = 0; r < it.rows; ++r) {
    const Range seen = part_of(b.seen[r], part);
    const int lo = static_cast<int>(headrace::clamp(seen.lo - order, 0, tokens));
    const int hi = static_cast<int>(headrace::clamp(seen.hi - order, lo, tokens));
    float* s = b.s + r * kTile;
    for (int j = 0; j < cols; j += kW) {
      const bool none = hi <= j || lo >= j + kW;
      store(s + j, none ? zero() : keep(silu(load(s + j)), zero(), lo - j, hi - j));
    }
    if (careful && lo < hi) {
      product<true>(s + lo, kTile, v + lo * a.v_row, a.v_row, hi - lo,
                    st.o + static_cast<std::int64_t>(r) * st.dim, st.dim, 1, st.dim);
    }
  }
  if (careful) return;
  if (sizeof(T) == sizeof(float) || it.rows < kPacked) {
    return product<true>(b.s, kTile, v, a.v_row, tokens, st.o, st.dim, st.rows, st.dim);
  }
  Widened::pack_values(v, a.v_row, tokens, st.dim, b.values);
  Widened::packed_values(b.s, 0, b.values, 0, tokens, st.o, st.rows, st.dim, nullptr, 0);
}

// Sums of the keys with orders in [begin, end). `careful` multiplies no value by the weight 0 of a
// row that does not see it, for when it is NaN or infinite.
template <class T>
inline void hstu_pass(const HstuArgs& a, const HstuItem& it, const HstuBlock& b, const Rows& st,
                      std::int64_t begin, std::int64_t end, bool careful) {
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(st.rows) * st.dim; i += kW) {
    store(st.o + i, zero());
  }
  for (int part = 0; part < kParts; ++part) {
    const std::int64_t lo = larger(b.hull[part].lo, begin), hi = smaller(b.hull[part].hi, end);
    for (std::int64_t i = 0; i < it.run_count && it.runs[i].order < hi; ++i) {
      const HstuRun& run = it.runs[i];
      const std::int64_t last = smaller(hi, run.order + run.count);
      for (std::int64_t o = larger(lo, run.order); o < last; o += kTile) {
        const int tokens = static_cast<int>(smaller(last - o, kTile));
        hstu_tile<T>(a, it, b, st, part, run.row + o - run.order, o, tokens, careful);
      }
    }
  }
}

inline void hstu_write(const HstuArgs& a, const HstuItem& it, const float* total) {
  for (int r = 0; r < it.rows; ++r) {
    const F by = set1(a.attn_scale ? a.attn_scale[it.row + r] : a.weight);
    const std::int64_t at = ((it.row + r) * a.heads + it.head) * a.v_dim;
    for (int d = 0; d < a.v_dim; d += kW) {
      store_any(a.o, at + d, a.dtype, mul(load(total + r * a.v_dim + d), by));
    }
  }
}

inline void hstu_add(float* total, const float* some, std::int64_t words) {
  for (std::int64_t i = 0; i < words; i += kW) {
    store(total + i, add(load(total + i), load(some + i)));
  }
}

template <class T>
inline void hstu_block(const HstuArgs& a, const HstuItem& it, float* scratch) {
  const std::int64_t words = static_cast<std::int64_t>(it.rows) * a.v_dim;
  float* total = scratch;
  HstuBlock b;
  b.q = total + 2 * words;
  b.s = b.q + it.rows * a.dim;
  b.keys = b.s + it.rows * kTile;
  b.values = b.keys + a.dim * kTile;
  const T* q = static_cast<const T*>(a.q) + it.row * a.q_row + it.head * a.q_head;
  for (int r = 0; r < it.rows; ++r) {
    for (int d = 0; d < a.dim; d += kW) {
      store(b.q + r * a.dim + d, mul(load(q + r * a.q_row + d), set1(a.alpha)));
    }
  }
  for (Range& hull : b.hull) hull = {kFar, 0};
  for (int r = 0; r < it.rows; ++r) {
    b.seen[r] = headrace::hstu_seen(*it.rule, it.order + r);
    for (int part = 0; part < kParts; ++part) {
      const Range seen = part_of(b.seen[r], part);
      if (seen.lo >= seen.hi) continue;
      b.hull[part] = {smaller(b.hull[part].lo, seen.lo), larger(b.hull[part].hi, seen.hi)};
    }
  }
  if (!it.partial) {
    for (std::int64_t i = 0; i < words; i += kW) store(total + i, zero());
  }
  for (std::int64_t cut = it.first; cut < it.last; ++cut) {
    const std::int64_t begin = it.cuts[cut] * a.split, end = begin + a.split;
    bool any = it.partial;
    for (const Range& h : b.hull) any = any || (h.lo < end && h.hi > begin);
    if (!any) continue;
    const Rows st{it.partial ? it.partial + cut * words : total + words, nullptr, nullptr, it.rows,
                  a.v_dim};
    hstu_pass<T>(a, it, b, st, begin, end, false);
    if (it.rows > 1 && !finite(st)) hstu_pass<T>(a, it, b, st, begin, end, true);
    if (!it.partial) hstu_add(total, st.o, words);
  }
  if (!it.partial) hstu_write(a, it, total);
}

void hstu_run(const HstuArgs& a, const HstuItem& it, float* scratch) {
  if (a.dtype == headrace::kF32) return hstu_block<float>(a, it, scratch);
  if (a.dtype == headrace::kBF16) return hstu_block<bf16>(a, it, scratch);
  return hstu_block<fp16>(a, it, scratch);
}

void hstu_merge(const HstuArgs& a, const HstuItem& it) {
  const std::int64_t words = static_cast<std::int64_t>(it.rows) * a.v_dim;
  for (std::int64_t cut = 1; cut < it.last; ++cut) {
    hstu_add(it.partial, it.partial + cut * words, words);
  }
  hstu_write(a, it, it.partial);
}

}  // namespace

extern "C" const headrace::HstuKernels HEADRACE_JOIN(headrace_hstu_, HEADRACE_LEVEL) = {hstu_run,
                                                                                        hstu_merge};
