// SPDX-License-Identifier: Apache-2.0
// Rows of fp32 scores that a cache holds, kept as bits: bit i of the words stands for score i. Such
// a row is followed by kW readable numbers.
#pragma once
#include "csrc/simd/lanes.h"

namespace {

// Ranks of the lanes of s = x[at, at + kW): how many of x[n] come before each.
inline Tally ranks_of(const float* x, std::int64_t n, std::int64_t at, F s) {
  Tally t = no_tally();
  const std::int64_t end = at + kW < n ? at + kW : n;
  for (std::int64_t j = 0; j < at; ++j) t = tally_reached(t, set1(x[j]), s);
  for (std::int64_t j = at; j < end; ++j) {
    t = tally_ordered(t, set1(x[j]), s, static_cast<int>(j - at));
  }
  for (std::int64_t j = end; j < n; ++j) t = tally_above(t, set1(x[j]), s);
  return t;
}

// The best `rank` of x[n], n <= 64: of equal ones the first.
std::uint64_t few(const float* x, std::int64_t n, std::int64_t rank) {
  std::uint64_t word = 0;
  for (std::int64_t i = 0; i < n; i += kW) {
    const Tally t = ranks_of(x, n, i, load(x + i));
    word |= static_cast<std::uint64_t>(below(t, static_cast<int>(rank))) << i;
  }
  return n < 64 ? word & ((std::uint64_t{1} << n) - 1) : word;
}

// at[r] = the index of the r-th best.
void order(const float* x, std::int64_t n, std::int32_t* at) {
  for (std::int64_t i = 0; i < n; i += kW) {
    std::int32_t rank[kW];
    store(rank, ranks_of(x, n, i, load(x + i)));
    for (std::int64_t l = 0; l < kW && i + l < n; ++l)
      at[rank[l]] = static_cast<std::int32_t>(i + l);
  }
}

// Those above a bound, and the first `ties` equal to it, which it takes off.
void mark(const float* x, std::int64_t n, float bound, std::int64_t* ties, std::uint64_t* words) {
  const F b = set1(bound);
  std::int64_t left = *ties;
  for (std::int64_t w = 0; w < n; w += 64) {
    std::uint64_t taken = 0, equal = 0;
    for (std::int64_t i = w; i < w + 64 && i < n; i += kW) {
      const F s = load(x + i);
      const unsigned lanes = first_of(n - i);
      const unsigned more = above(s, b) & lanes;
      taken |= static_cast<std::uint64_t>(more) << (i - w);
      equal |= static_cast<std::uint64_t>(reached(s, b) & lanes & ~more) << (i - w);
    }
    for (; equal && left > 0; --left, equal &= equal - 1) taken |= equal & (~equal + 1);
    words[w / 64] = taken;
  }
  *ties = left;
}

// The indices of set bits.
std::int64_t list(const std::uint64_t* words, std::int64_t n, std::int32_t* out) {
  std::int64_t made = 0;
  for (std::int64_t i = 0; i < n; i += kW) {
    const unsigned taken = static_cast<unsigned>(words[i / 64] >> (i % 64)) & first_of(kW);
    if (!taken) continue;
    pack_index(i, taken, out + made);
    made += bits_of(taken);
  }
  return made;
}

}  // namespace
