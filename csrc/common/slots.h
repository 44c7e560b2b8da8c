// SPDX-License-Identifier: Apache-2.0
// What only the values of a call over pages can tell: slots that exist, frequencies with an axis.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels/attention/args.h"

namespace headrace {

// Both throw std::invalid_argument naming the argument of op.
inline void check_rope(const Rope& rope, const std::string& op) {
  for (int i = 0; rope.freq_axis && i < rope.half; ++i) {
    const std::int32_t axis = rope.freq_axis[i];
    if (axis >= 0 && axis < rope.axes) continue;
    throw std::invalid_argument(op + "(freq_axis): expected axes in [0, " +
                                std::to_string(rope.axes) + "), got " + std::to_string(axis) +
                                " for frequency " + std::to_string(i));
  }
}

inline void check_slots(const AppendArgs& args, const std::string& op, std::int64_t tokens,
                        std::int64_t pages) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t* at = args.where + t * (2 + args.rope.axes);
    if (at[0] >= 0 && at[0] < pages && at[1] >= 0 && at[1] < args.page_size) continue;
    throw std::invalid_argument(op + "(where): expected pages in [0, " + std::to_string(pages) +
                                ") and slots in [0, " + std::to_string(args.page_size) +
                                "), got page " + std::to_string(at[0]) + " and slot " +
                                std::to_string(at[1]) + " for token " + std::to_string(t));
  }
}

}  // namespace headrace
