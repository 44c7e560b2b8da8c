// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

// The scores of one row. Read as fp32, negated where the lowest are wanted, NaN as -infinity.
struct ScoreRow {
  const void* score;
  int dtype;
  bool lowest;
};

struct ScoreTally {
  std::int64_t candidates;  // above -infinity
  std::int64_t reached;     // candidates of at least the threshold
  float low, high;          // extremes of the finite candidates
};

struct SelectKernels {
  // x[0, end - begin) = the scores of [begin, end).
  void (*read)(const ScoreRow&, std::int64_t begin, std::int64_t end, float* x);
  // Adds the scores of [begin, end) to a tally.
  void (*tally)(const ScoreRow&, std::int64_t begin, std::int64_t end, float threshold,
                ScoreTally*);
  // Collects the scores from lo to hi in their order and returns how many; adds up the candidates
  // and those above hi.
  std::int64_t (*collect)(const ScoreRow&, std::int64_t begin, std::int64_t end, float lo, float hi,
                          float* out, std::int64_t* above, std::int64_t* candidates);
  // The rank-th largest (from 1) of x[n], which lies from lo to hi.
  float (*nth)(const float* x, std::int64_t n, std::int64_t rank, float lo, float hi);
  // How many of x[n] are above a bound, and how many equal to it.
  void (*count)(const float* x, std::int64_t n, float bound, std::int64_t* above,
                std::int64_t* equal);
  // Indices of the scores above a bound and of the first `ties` equal to it, which it takes off;
  // how many.
  std::int64_t (*emit)(const ScoreRow&, std::int64_t begin, std::int64_t end, float bound,
                       std::int64_t* ties, std::int32_t* out);
  // w = counts * exp(x - top), 0 for x = -infinity; counts may be null.
  void (*weigh)(const float* x, const float* counts, std::int64_t n, float top, float* w);
  // Of short rows, by comparing each with each; see short.inl.h.
  std::uint64_t (*few)(const float* x, std::int64_t n, std::int64_t rank);
  void (*order)(const float* x, std::int64_t n, std::int32_t* at);
  // Bits of what is kept, and their indices.
  void (*mark)(const float* x, std::int64_t n, float bound, std::int64_t* ties,
               std::uint64_t* words);
  std::int64_t (*list)(const std::uint64_t* words, std::int64_t n, std::int32_t* out);
};

}  // namespace headrace

HEADRACE_TABLES(SelectKernels, select)
