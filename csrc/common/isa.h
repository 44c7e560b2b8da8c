// SPDX-License-Identifier: Apache-2.0
// Which instruction-set level the kernels run at: the best that the machine has, or the one that
// HEADRACE_ISA names, or the one that a test forces.
#pragma once
#include <string>
#include <vector>

namespace headrace {

enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vnni = 3, kAvx512Bf16 = 4 };

const char* isa_name(Isa level);
bool isa_available(Isa level);
std::vector<std::string> available_isas();  // slowest first
Isa active_isa();
void force_isa(const std::string& name);  // throws std::invalid_argument; "" restores the default

template <class Table>
const Table& pick(const Table& scalar, const Table& avx2, const Table& avx512,
                  const Table& avx512_vnni, const Table& avx512_bf16) {
  switch (active_isa()) {
    case Isa::kAvx512Bf16:
      return avx512_bf16;
    case Isa::kAvx512Vnni:
      return avx512_vnni;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return scalar;
  }
}

}  // namespace headrace

// The table of a family at the active level. No name of a level that was not compiled may be left
// over, since a module with one would not load. Few families have tables of their own above
// AVX-512: HEADRACE_PICK_BF16 is for those with one for AVX512-BF16, HEADRACE_PICK_VNNI for those
// that have one for AVX512-VNNI too. Where a family has none it runs as at the level below.
#if defined(HEADRACE_X86)
#define HEADRACE_PICK_OF(family, vnni, bf16)                               \
  ::headrace::pick(headrace_##family##_scalar, headrace_##family##_avx2,   \
                   headrace_##family##_avx512, headrace_##family##_##vnni, \
                   headrace_##family##_##bf16)
#define HEADRACE_PICK(family) HEADRACE_PICK_OF(family, avx512, avx512)
#else
#define HEADRACE_PICK(family) headrace_##family##_scalar
#endif
#if defined(HEADRACE_BF16)
#define HEADRACE_PICK_BF16(family) HEADRACE_PICK_OF(family, avx512, avx512_bf16)
#define HEADRACE_PICK_VNNI(family) HEADRACE_PICK_OF(family, avx512_vnni, avx512_bf16)
#elif defined(HEADRACE_VNNI)
#define HEADRACE_PICK_BF16(family) HEADRACE_PICK(family)
#define HEADRACE_PICK_VNNI(family) HEADRACE_PICK_OF(family, avx512_vnni, avx512_vnni)
#else
#define HEADRACE_PICK_BF16(family) HEADRACE_PICK(family)
#define HEADRACE_PICK_VNNI(family) HEADRACE_PICK(family)
#endif
