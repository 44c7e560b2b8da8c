// SPDX-License-Identifier: Apache-2.0
// From sums to scores; for the kernels of every level and for the host.
#pragma once
#include <cmath>
#include <cstring>

#include "args.h"

namespace {

// e^-x for x >= 0, to 1e-9: without a call, which takes longer than the sums of a short row.
inline double falling(double x) {
  constexpr double kLn2 = 0.6931471805599453, kLog2e = 1.4426950408889634;
  const double y = x < 200 ? x : 200;  // below all fp32
  const auto n = static_cast<std::int64_t>(y * kLog2e + 0.5);
  const double z = static_cast<double>(n) * kLn2 - y;
  constexpr double kOver[] = {1. / 5040, 1. / 720, 1. / 120, 1. / 24, 1. / 6, .5, 1., 1.};
  double p = 1. / 40320;
  for (const double c : kOver) p = c + z * p;
  const std::int64_t bits = (1023 - n) << 52;
  double scale;
  std::memcpy(&scale, &bits, 8);
  return x == x ? p * scale : x;  // no branch, so that a compiler takes many at once
}

// n: how many elements were compared.
inline float similarity_of(const headrace::SimilarityArgs& a, const double* sums, double n) {
  switch (a.metric) {
    case headrace::kCos: {
      const double norms = sqrt(sums[1]) * sqrt(sums[2]);
      return static_cast<float>(norms == 0 ? 0.0 : sums[0] / norms);
    }
    case headrace::kL1:
      return static_cast<float>(n == 0 ? 0.0 : sums[0] / n);
    case headrace::kGauss:
      return static_cast<float>(falling(sums[0] / (2 * a.alpha)));
    default:
      return static_cast<float>(sums[0]);
  }
}

inline bool is_distance(int metric) { return metric == headrace::kL1 || metric == headrace::kL2; }

}  // namespace
