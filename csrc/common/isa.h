// SPDX-License-Identifier: Apache-2.0
// Which instruction-set level the kernels run at: the best that the machine has, or the one that
// HEADRACE_ISA names, or the one that a test forces.
#pragma once
#include <string>
#include <vector>

namespace headrace {

enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

const char* isa_name(Isa level);
bool isa_available(Isa level);
std::vector<std::string> available_isas();  // slowest first
Isa active_isa();
void force_isa(const std::string& name);  // throws std::invalid_argument; "" restores the default

template <class Table>
const Table& pick(const Table& scalar, const Table& avx2, const Table& avx512) {
  switch (active_isa()) {
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return scalar;
  }
}

}  // namespace headrace
