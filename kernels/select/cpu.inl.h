// SPDX-License-Identifier: Apache-2.0
// Passes over the scores of a row, each of them one read. Scores are compared as numbers: both
// zeros are one, and NaN, read as -infinity, is below all that can be kept.
#pragma once
#include <string.h>

#include "args.h"
#include "csrc/simd/lanes.h"
#include "csrc/simd/vec.h"
#include "short.inl.h"

namespace {

using headrace::ScoreRow;
using headrace::ScoreTally;

constexpr float kInf = __builtin_inff();

// body(index, scores, lanes) for [begin, end); lanes beyond the end are -infinity.
template <class T, class Body>
inline void each_as(const T* p, std::int64_t begin, std::int64_t end, bool lowest,
                    const Body& body) {
  const F sign = set1(lowest ? -1.f : 1.f), least = set1(-kInf);
  std::int64_t i = begin;
  for (; i + kW <= end; i += kW) body(i, max(mul(load(p + i), sign), least), kW);
  if (i == end) return;
  T rest[kW];
  memset(rest, 0xff, sizeof rest);  // NaN in every type
  memcpy(rest, p + i, static_cast<std::size_t>(end - i) * sizeof(T));
  body(i, max(mul(load(rest), sign), least), static_cast<int>(end - i));
}

template <class Body>
inline void each(const ScoreRow& row, std::int64_t begin, std::int64_t end, const Body& body) {
  if (row.dtype == headrace::kF32) {
    each_as(static_cast<const float*>(row.score), begin, end, row.lowest, body);
  } else if (row.dtype == headrace::kBF16) {
    each_as(static_cast<const bf16*>(row.score), begin, end, row.lowest, body);
  } else {
    each_as(static_cast<const fp16*>(row.score), begin, end, row.lowest, body);
  }
}

void read(const ScoreRow& row, std::int64_t begin, std::int64_t end, float* x) {
  each(row, begin, end, [&](std::int64_t i, F s, int lanes) {
    if (lanes == kW) return store(x + (i - begin), s);
    float rest[kW];
    store(rest, s);
    memcpy(x + (i - begin), rest, static_cast<std::size_t>(lanes) * 4);
  });
}

void tally(const ScoreRow& row, std::int64_t begin, std::int64_t end, float threshold,
           ScoreTally* t) {
  const F least = set1(-kInf), most = set1(kInf), bound = set1(threshold);
  F low = most, high = least;
  std::int64_t candidates = 0, enough = 0;
  each(row, begin, end, [&](std::int64_t, F s, int) {
    const unsigned valid = above(s, least);
    candidates += bits_of(valid);
    enough += bits_of(valid & reached(s, bound));
    if (valid == (1u << kW) - 1u && !reached(s, most)) {
      low = min(s, low);
      high = max(s, high);
      return;
    }
    float x[kW];
    store(x, s);
    for (int l = 0; l < kW; ++l) {
      if (x[l] == -kInf || x[l] == kInf) continue;
      t->low = x[l] < t->low ? x[l] : t->low;
      t->high = x[l] > t->high ? x[l] : t->high;
    }
  });
  t->candidates += candidates;
  t->reached += enough;
  float x[kW];
  store(x, low);
  for (float v : x) t->low = v < t->low ? v : t->low;
  store(x, high);
  for (float v : x) t->high = v > t->high ? v : t->high;
}

std::int64_t collect(const ScoreRow& row, std::int64_t begin, std::int64_t end, float lo, float hi,
                     float* out, std::int64_t* over, std::int64_t* candidates) {
  const F least = set1(-kInf), from = set1(lo), upto = set1(hi);
  std::int64_t made = 0, valid = 0, more = 0;
  each(row, begin, end, [&](std::int64_t, F s, int lanes) {
    const unsigned higher = above(s, upto);
    valid += bits_of(above(s, least));
    more += bits_of(higher);
    const unsigned taken = reached(s, from) & ~higher & ((1u << lanes) - 1u);
    if (!taken) return;
    pack(s, taken, out + made);
    made += bits_of(taken);
  });
  *over += more;
  *candidates += valid;
  return made;
}

void count(const float* x, std::int64_t n, float bound, std::int64_t* over, std::int64_t* equal) {
  const F b = set1(bound);
  std::int64_t more = 0, enough = 0;
  each_as(x, 0, n, false, [&](std::int64_t, F s, int lanes) {
    more += bits_of(above(s, b));
    enough += bits_of(reached(s, b) & ((1u << lanes) - 1u));
  });
  *over = more;
  *equal = enough - more;
}

// Orders as the numbers do; what lies between the keys of the infinities is no NaN.
inline std::uint32_t key_of(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float number_of(std::uint32_t key) {
  const std::uint32_t bits = key & 0x80000000u ? key ^ 0x80000000u : ~key;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

float nth(const float* x, std::int64_t n, std::int64_t rank, float lo, float hi) {
  std::uint32_t low = key_of(lo), high = key_of(hi);
  while (low < high) {
    const std::uint32_t middle = low + (high - low + 1) / 2;
    if (at_least(x, n, number_of(middle)) >= rank) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return number_of(low);
}

std::int64_t emit(const ScoreRow& row, std::int64_t begin, std::int64_t end, float bound,
                  std::int64_t* left, std::int32_t* out) {
  const F b = set1(bound);
  std::int64_t made = 0, ties = *left;
  each(row, begin, end, [&](std::int64_t i, F s, int lanes) {
    const unsigned enough = reached(s, b) & ((1u << lanes) - 1u);
    if (!enough) return;
    unsigned taken = above(s, b), equal = enough & ~taken;
    for (; equal && ties > 0; --ties) {
      taken |= equal & (~equal + 1);
      equal &= equal - 1;
    }
    pack_index(i, taken, out + made);
    made += bits_of(taken);
  });
  *left = ties;
  return made;
}

void weigh(const float* x, const float* counts, std::int64_t n, float top, float* w) {
  constexpr float kLog2e = 1.44269504088896f;
  const F high = set1(top), least = set1(-kInf);
  for (std::int64_t i = 0; i < n; i += kW) {
    const int lanes = static_cast<int>(n - i < kW ? n - i : kW);
    float s[kW], c[kW], e[kW];
    for (int l = 0; l < kW; ++l) {
      s[l] = l < lanes ? x[i + l] : -kInf;
      c[l] = l < lanes && counts ? counts[i + l] : 1.f;
    }
    const F score = load(s);
    store(e, mul(exp2(mul(sub(score, high), set1(kLog2e))), load(c)));
    const unsigned valid = above(score, least), best = reached(score, high);
    for (int l = 0; l < lanes; ++l) {
      w[i + l] = !((valid >> l) & 1u) ? 0.f : (best >> l) & 1u ? c[l] : e[l];
    }
  }
}

}  // namespace

extern "C" const headrace::SelectKernels HEADRACE_JOIN(headrace_select_, HEADRACE_LEVEL) = {
    read, tally, collect, nth, count, emit, weigh, few, order, mark, list};
