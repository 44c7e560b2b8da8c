// SPDX-License-Identifier: Apache-2.0
// What the bindings of ops over pages share.
#pragma once
#include <tuple>

#include "bind/bind.h"
#include "kernels/attention/args.h"

namespace headrace::bind {

// inv_freq, freq_axis, how many frequencies, how many axes.
using RopeArgs = std::tuple<Address, Address, int, int>;
// Scales of quantised pages: address (0: none), strides of page, head and slot.
using ScaleArgs = std::tuple<Address, std::int64_t, std::int64_t, int>;

inline headrace::Rope rope_of(RopeArgs rope, float gain) {
  const auto [inv_freq, freq_axis, half, axes] = rope;
  return {at<const double>(inv_freq), at<const std::int32_t>(freq_axis), half, axes, gain};
}

inline headrace::Scales scales_of(ScaleArgs scale) {
  const auto [address, page, head, slot] = scale;
  return {at<float>(address), page, head, slot};
}

}  // namespace headrace::bind
