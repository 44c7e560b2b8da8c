// SPDX-License-Identifier: Apache-2.0
// What queries fold to: sums of floats, weights of sign bits.
#pragma once
#include <string.h>

#include "tile.inl.h"

namespace {

using headrace::BlockScoreArgs;

// Whether rows of queries are as they were given, and stay bf16, to meet keys two elements at a
// time.
inline bool score_in_pairs(const BlockScoreArgs& a) {
  return in_pairs(a.dtype, a.dim) && a.q_dtype == headrace::kBF16 && !a.upper && a.folded > kFew &&
         a.group == a.q_heads / a.kv_heads && a.folded == a.group * a.queries;
}

// Sums are folded into the queries where nothing but sums follows the product.
template <class T>
inline void fold_as(const BlockScoreArgs& a, std::int64_t batch) {
  const int in_group = a.q_heads / a.kv_heads;
  const bool pool = a.folded == a.group;
  const int merged = in_group / a.group;  // heads that become one
  const std::int64_t size = static_cast<std::int64_t>(a.folded) * a.dim;
  const float part = pool && a.reduce == headrace::kQueryMean ? 1.f / a.queries : 1.f;
  const std::int64_t low = a.upper ? a.dim * a.folded : 0;
  for (int kv = 0; kv < a.kv_heads; ++kv) {
    float* base = a.folds + (batch * a.kv_heads + kv) * size * (a.upper ? 2 : 1);
    for (int r = 0; r < a.folded; ++r) {
      float* out = base + r * a.dim;
      if (score_in_pairs(a)) {
        const T* one = static_cast<const T*>(a.q) + batch * a.q_strides[0] +
                       (kv * in_group + r / a.queries) * a.q_strides[1] +
                       r % a.queries * a.q_strides[2];
        memcpy(base + r * a.dim / 2, one, static_cast<std::size_t>(a.dim) * sizeof(T));
        continue;
      }
      for (std::int64_t d = 0; d < a.dim; d += kW) {
        F sum = zero(), negative = zero();
        const int first_head = pool ? r * merged : static_cast<int>(r / a.queries);
        const std::int64_t first = pool ? 0 : r % a.queries, last = pool ? a.queries : first + 1;
        for (int h = first_head; h < first_head + merged; ++h) {
          const T* head = static_cast<const T*>(a.q) + batch * a.q_strides[0] +
                          (kv * in_group + h) * a.q_strides[1];
          for (std::int64_t w = first; w < last; ++w) {
            const F x = load(head + w * a.q_strides[2] + d);
            sum = add(sum, a.upper ? max(x, zero()) : x);
            if (a.upper) negative = add(negative, min(x, zero()));
          }
        }
        store(out + d, mul(sum, set1(part)));
        if (a.upper) store(out + low + d, mul(negative, set1(part)));
      }
    }
  }
}

// Rows of queries that one row of sign bits stands for.
inline std::int64_t summed_queries(const BlockScoreArgs& a) {
  return a.q_heads / a.kv_heads * a.queries / a.folded;
}

inline void fold_bits(const BlockScoreArgs& a, std::int64_t batch) {
  const std::int64_t summed = summed_queries(a), all = a.q_heads * a.queries;
  std::uint32_t* out = reinterpret_cast<std::uint32_t*>(a.folds) +
                       batch * a.kv_heads * a.folded * headrace::bit_record(a);
  for (std::int64_t first = 0; first < all; first += summed) {
    std::uint32_t* total = out++;
    *total = 0;
    for (std::int64_t d = 0; d < a.dim; ++d) {
      std::int64_t set[32] = {};
      for (std::int64_t i = first; i < first + summed; ++i) {
        const std::uint32_t word = static_cast<const std::uint32_t*>(
            a.q)[batch * a.q_strides[0] + i / a.queries * a.q_strides[1] +
                 i % a.queries * a.q_strides[2] + d];
        for (int b = 0; b < 32; ++b) set[b] += (word >> b) & 1u;
      }
      std::uint32_t* record = out;
      out += 1 + a.planes;
      for (std::uint32_t* r = record; r < out; ++r) *r = 0;
      for (int b = 0; b < 32; ++b) {
        const std::int64_t weight = (summed - 2 * set[b]) / a.bit_unit;
        const std::uint32_t size = static_cast<std::uint32_t>(weight < 0 ? -weight : weight);
        record[0] |= static_cast<std::uint32_t>(weight < 0) << b;
        *total += size;
        for (int p = 0; p < a.planes; ++p) {
          record[1 + p] |= ((size >> (a.planes - 1 - p)) & 1u) << b;
        }
      }
    }
  }
}

void fold(const BlockScoreArgs& a, std::int64_t batch) {
  if (kBits && a.dtype == headrace::kScoreInt) return fold_bits(a, batch);
  if (a.q_dtype == headrace::kF32) return fold_as<float>(a, batch);
  if (a.q_dtype == headrace::kBF16) return fold_as<bf16>(a, batch);
  fold_as<fp16>(a, batch);
}

}  // namespace
