// SPDX-License-Identifier: Apache-2.0
// The angles of rotary positions, for the level that the including file is compiled for.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

// cos and sin of distance(i) * inv_freq[i]. The angle is reduced in fp64, so that a distance of
// millions costs no accuracy; what is left of it is below pi / 4 and fits fp32.
template <class Distance>
inline void turns(Distance distance, const double* inv_freq, int half, float* c, float* s) {
  constexpr double kTwoOverPi = 0.636619772367581343, kRound = 6755399441055744.0;
  constexpr double kHigh = 1.57079632673412561417, kLow = 6.07710050650619224932e-11;
  for (int i = 0; i < half; ++i) {
    const double a = distance(i) * inv_freq[i];
    const double shifted = a * kTwoOverPi + kRound;
    std::int64_t bits;
    std::memcpy(&bits, &shifted, 8);
    const double turns = shifted - kRound;
    const float r = static_cast<float>((a - turns * kHigh) - turns * kLow);
    const float z = r * r;
    const float sine =
        r + r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
    const float cosine =
        1.f - 0.5f * z +
        z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const bool swap = bits & 1;
    const float cv = swap ? sine : cosine, sv = swap ? cosine : sine;
    c[i] = (bits + 1) & 2 ? -cv : cv;
    s[i] = bits & 2 ? -sv : sv;
  }
}

}  // namespace
