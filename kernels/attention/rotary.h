// SPDX-License-Identifier: Apache-2.0
// Exact angles on CPU and GPU: a frequency is a fraction of a turn in units of 2^-64, a distance
// times it wraps at whole turns with nothing lost, so a distance of 4,000,000 is as good as one
// of 1.
#pragma once
#include <math.h>

#include "visible.h"

namespace headrace {
namespace {

// Radians a step (fp64) to turns a step; whole turns drop out, since distances are whole.
HEADRACE_HD std::int64_t phase_step(double freq) {
  double turns = freq * 0.15915494309189535;
  turns -= floor(turns + 0.5);
  return static_cast<std::int64_t>(turns * 18446744073709551616.0);
}

HEADRACE_HD std::int64_t phase(std::int64_t distance, std::int64_t step) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(distance) *
                                   static_cast<std::uint64_t>(step));
}

HEADRACE_HD void cos_sin(std::int64_t phase, float* cosine, float* sine) {
  const std::int32_t turn = static_cast<std::int32_t>(phase >> 32);
  const std::int64_t quarter = (static_cast<std::int64_t>(turn) + (1 << 29)) >> 30;
  const float r = static_cast<float>(static_cast<std::int32_t>(turn - (quarter << 30))) *
                  1.4629180792671596e-9f;  // 2 pi / 2^32
  const float z = r * r;
  const float s = r + r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
  const float c =
      1.f - 0.5f * z +
      z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  const float cv = quarter & 1 ? s : c, sv = quarter & 1 ? c : s;
  *cosine = (quarter + 1) & 2 ? -cv : cv;
  *sine = quarter & 2 ? -sv : sv;
}

}  // namespace
}  // namespace headrace
