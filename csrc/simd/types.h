// SPDX-License-Identifier: Apache-2.0
// Element types that cross the C boundary, shared by every ISA level and by the host side.
#pragma once
#include <cstdint>

namespace headrace {

struct bf16 {
  std::uint16_t bits;
};
struct fp16 {
  std::uint16_t bits;
};

enum DType : int { kF32 = 0, kBF16 = 1, kF16 = 2 };

inline constexpr int dtype_size(int dtype) { return dtype == kF32 ? 4 : 2; }

}  // namespace headrace
