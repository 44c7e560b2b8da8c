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

// Float of 4 exponent and 3 fraction bits, without infinities: 0x7f is NaN, 448 the largest.
struct e4m3 {
  std::uint8_t bits;
};

enum DType : int { kF32 = 0, kBF16 = 1, kF16 = 2, kI8 = 3, kE4M3 = 4 };

inline constexpr int dtype_size(int dtype) { return dtype == kF32 ? 4 : dtype < kI8 ? 2 : 1; }

}  // namespace headrace

// The tables that a family's kernels export, one for each level that it is compiled for.
#define HEADRACE_TABLES(Kernels, family)                          \
  extern "C" {                                                    \
  extern const headrace::Kernels headrace_##family##_scalar;      \
  extern const headrace::Kernels headrace_##family##_avx2;        \
  extern const headrace::Kernels headrace_##family##_avx512;      \
  extern const headrace::Kernels headrace_##family##_avx512_vnni; \
  extern const headrace::Kernels headrace_##family##_avx512_bf16; \
  }
