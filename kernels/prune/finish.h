// SPDX-License-Identifier: Apache-2.0
// From sums to scores; for the kernels of every level and for the host.
#pragma once
#include <cmath>

#include "args.h"

namespace {

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
      return static_cast<float>(exp(-sums[0] / (2 * a.alpha)));
    default:
      return static_cast<float>(sums[0]);
  }
}

inline bool is_distance(int metric) { return metric == headrace::kL1 || metric == headrace::kL2; }

}  // namespace
