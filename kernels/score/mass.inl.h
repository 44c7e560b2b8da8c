// SPDX-License-Identifier: Apache-2.0
// How much attention keys receive: rows of queries against a chunk of keys, first for the sums of
// the softmax of every row, then for what every key gets.
#pragma once
#include <string.h>

#include "tile.inl.h"

namespace {

using headrace::MassArgs;

constexpr float kLog2e = 1.44269504088896f;
constexpr int kMassRows = 24;

// Whether queries stay bf16, to meet keys two elements at a time; logits are scaled then.
inline bool mass_in_pairs(const MassArgs& a) {
  return in_pairs(a.dtype, a.dim) && a.queries * (a.q_heads / a.kv_heads) > kFew;
}

// Calls body(first row, rows, first key, keys, products [rows][kScoreTile]) for a chunk. Products
// that were kept are read, and those that are to be kept are left where they belong.
template <class T, class Body>
inline void each_tile(const MassArgs& a, std::int64_t batch, int kv, std::int64_t begin,
                      std::int64_t end, float* scratch, const Body& body) {
  float *s = scratch, *columns = scratch + kMassRows * kScoreTile;
  const T* keys = static_cast<const T*>(a.k) + batch * a.k_strides[0] + kv * a.k_strides[1];
  const std::int64_t rows = a.queries * (a.q_heads / a.kv_heads);
  const bool pairs = mass_in_pairs(a);
  const std::int64_t words = pairs ? a.dim / 2 : a.dim;
  const float* q = a.folds + (batch * a.kv_heads + kv) * rows * words;
  const std::int64_t head = batch * a.kv_heads + kv - a.first_head;  // among those that are kept
  for (std::int64_t t = begin; t < end; t += kScoreTile) {
    const int n = static_cast<int>(end - t < kScoreTile ? end - t : kScoreTile);
    float* kept = a.logits ? a.logits + head * a.head_logits + t * rows : nullptr;
    const bool fresh = !kept || a.summing, few = rows <= kFew;
    const T* at[2 * kScoreTile];  // and those of the next tile
    const std::int64_t after = end - t - n;
    Coming coming(at + kScoreTile, static_cast<int>(after < kScoreTile ? after : kScoreTile), a.dim,
                  static_cast<int>(rows), words);
    if (fresh) {
      for (int j = 0; j < 2 * kScoreTile; ++j) {
        at[j] = keys + (t + j < end ? t + j : t) * a.k_strides[2];
      }
      if (pairs) {
        to_pairs(at, n, a.dim, columns);
      } else if (!few) {
        to_columns(at, n, a.dim, columns);
      }
    }
    for (std::int64_t r = 0; r < rows; r += kMassRows) {
      const int count = static_cast<int>(rows - r < kMassRows ? rows - r : kMassRows);
      float* to = kept ? kept + r * kScoreTile : s;
      if (fresh && few) dots_tile(q, count, at, n, a.dim, true, to);
      if (fresh && pairs) {
        products<Doubles>(q + r * words, words, count, columns, n, words, false, to, &coming);
        const F by = set1(a.scale * kLog2e);
        for (int j = 0; j < count * kScoreTile; j += kW) store(to + j, mul(load(to + j), by));
      } else if (fresh && !few) {
        products(q + r * words, words, count, columns, n, words, false, to, &coming);
      }
      body(r, count, t, n, to);
    }
  }
}

// Keys of [t, t + n) that row r sees.
inline int seen(const MassArgs& a, std::int64_t length, std::int64_t r, std::int64_t t, int n) {
  if (!a.causal) return n;
  // Of 32 bits: to divide 64 takes some processors longer than a row of a tile.
  const auto w = static_cast<std::uint32_t>(r) % static_cast<std::uint32_t>(a.queries);
  const std::int64_t last = length - a.queries + w + 1 - t;
  return last < 0 ? 0 : last < n ? static_cast<int>(last) : n;
}

// Logits in units of log 2; those that are not seen are -infinity.
inline void mask_rest(float* s, int from) {
  for (int j = from; j < kScoreTile; ++j) s[j] = -kInf;
}

template <class T>
inline void sums_as(const MassArgs& a, std::int64_t batch, int kv, std::int64_t begin,
                    std::int64_t end, float* top, float* sum, float* scratch) {
  const std::int64_t rows = a.queries * (a.q_heads / a.kv_heads);
  for (std::int64_t r = 0; r < rows; ++r) {
    top[r] = -kInf;
    sum[r] = 0.f;
  }
  const std::int64_t length = a.lengths ? a.lengths[batch * a.lengths_stride] : a.keys;
  each_tile<T>(a, batch, kv, begin, end, scratch,
               [&](std::int64_t r0, int count, std::int64_t t, int n, float* all) {
                 for (int i = 0; i < count; ++i) {
                   float* s = all + i * kScoreTile;
                   const int there = seen(a, length, r0 + i, t, n);
                   if (there == 0) continue;
                   mask_rest(s, there);
                   F m = load(s);
                   for (int j = kW; j < kScoreTile; j += kW) m = max(m, load(s + j));
                   const float best = hmax(m), old = top[r0 + i], now = best > old ? best : old;
                   if (now == -kInf) continue;
                   const F shift = set1(-now);
                   F total = zero();
                   for (int j = 0; j < kScoreTile; j += kW) {
                     // -infinity below the range of exp2 counts 2^-150
                     total = add(total, exp2(add(load(s + j), shift)));
                   }
                   float before[kW] = {old - now};
                   store(before, exp2(load(before)));
                   sum[r0 + i] = (old == -kInf ? 0.f : sum[r0 + i] * before[0]) + hsum(total);
                   top[r0 + i] = now;
                 }
               });
}

template <class T>
inline void mass_as(const MassArgs& a, std::int64_t batch, int kv, std::int64_t begin,
                    std::int64_t end, float* scratch) {
  const std::int64_t rows = a.queries * (a.q_heads / a.kv_heads);
  const float* norm = a.norms + (batch * a.kv_heads + kv) * rows;
  float* out = a.mass + (batch * a.kv_heads + kv) * a.keys;
  for (std::int64_t j = begin; j < end; ++j) out[j] = 0.f;
  const std::int64_t length = a.lengths ? a.lengths[batch * a.lengths_stride] : a.keys;
  each_tile<T>(a, batch, kv, begin, end, scratch,
               [&](std::int64_t r0, int count, std::int64_t t, int n, float* all) {
                 F got[kScoreTile / kW];
                 float edge[kScoreTile];
                 for (int j = 0; j < kScoreTile; ++j) edge[j] = j < n ? out[t + j] : 0.f;
                 for (int v = 0; v < kScoreTile / kW; ++v) got[v] = load(edge + v * kW);
                 for (int i = 0; i < count; ++i) {
                   const float lse = norm[r0 + i];
                   const int there = seen(a, length, r0 + i, t, n);
                   if (there == 0 || lse == -kInf) continue;
                   float* s = all + i * kScoreTile;
                   const F shift = set1(-lse);
                   for (int v = 0; v < kScoreTile / kW; ++v) {
                     const F p =
                         keep(exp2(add(load(s + v * kW), shift)), zero(), 0, there - v * kW);
                     got[v] = a.largest ? max(p, got[v]) : add(got[v], p);
                   }
                 }
                 for (int v = 0; v < kScoreTile / kW; ++v) store(edge + v * kW, got[v]);
                 for (int j = 0; j < n; ++j) out[t + j] = edge[j];
               });
}

// Queries in fp32, times the scale and log2(e).
template <class T>
inline void scaled_as(const MassArgs& a, std::int64_t batch) {
  const F by = set1(a.scale * kLog2e);
  for (int h = 0; h < a.q_heads; ++h) {
    for (std::int64_t w = 0; w < a.queries; ++w) {
      const T* q = static_cast<const T*>(a.q) + batch * a.q_strides[0] + h * a.q_strides[1] +
                   w * a.q_strides[2];
      float* out = a.folds + ((batch * a.q_heads + h) * a.queries + w) * a.dim;
      if (mass_in_pairs(a)) {
        memcpy(a.folds + (out - a.folds) / 2, q, static_cast<std::size_t>(a.dim) * sizeof(T));
        continue;
      }
      for (std::int64_t d = 0; d < a.dim; d += kW) store(out + d, mul(load(q + d), by));
    }
  }
}

void mass_queries(const MassArgs& a, std::int64_t batch) {
  by_type(a.dtype, [&](auto x) { scaled_as<decltype(x)>(a, batch); });
}

void mass_sums(const MassArgs& a, std::int64_t batch, int kv, std::int64_t begin, std::int64_t end,
               float* top, float* sum, float* scratch) {
  by_type(a.dtype,
          [&](auto x) { sums_as<decltype(x)>(a, batch, kv, begin, end, top, sum, scratch); });
}

void mass(const MassArgs& a, std::int64_t batch, int kv, std::int64_t begin, std::int64_t end,
          float* scratch) {
  by_type(a.dtype, [&](auto x) { mass_as<decltype(x)>(a, batch, kv, begin, end, scratch); });
}

}  // namespace
