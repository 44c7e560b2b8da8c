// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace headrace {
namespace {

constexpr Isa kLevels[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni,
                           Isa::kAvx512Bf16};

Isa parse(const std::string& name, const char* origin) {
  std::string have;
  for (Isa level : kLevels) {
    if (name == isa_name(level) && isa_available(level)) return level;
    if (isa_available(level)) have += std::string(have.empty() ? "" : ", ") + isa_name(level);
  }
  throw std::invalid_argument(std::string(origin) + ": expected one of " + have +
                              " (what this machine has), got '" + name + "'");
}

Isa chosen() {
  if (const char* wanted = std::getenv("HEADRACE_ISA"); wanted && *wanted) {
    return parse(wanted, "HEADRACE_ISA");
  }
  Isa best = Isa::kScalar;
  for (Isa level : kLevels) {
    if (isa_available(level)) best = level;
  }
  return best;
}

std::atomic<int>& slot() {
  static std::atomic<int> level{static_cast<int>(chosen())};
  return level;
}

}  // namespace

const char* isa_name(Isa level) {
  switch (level) {
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "scalar";
  }
}

bool isa_available(Isa level) {
#if defined(HEADRACE_X86)
  // The builtin also asks whether the operating system saves the registers.
  switch (level) {
    case Isa::kAvx512Bf16:
#if defined(HEADRACE_EMULATE)
      return isa_available(Isa::kAvx512);
#elif defined(HEADRACE_BF16)
      return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
             isa_available(Isa::kAvx512Vnni);
#else
      return false;
#endif
    case Isa::kAvx512Vnni:
#if defined(HEADRACE_EMULATE)
      return isa_available(Isa::kAvx512);
#elif defined(HEADRACE_VNNI)
      return __builtin_cpu_supports("avx512vnni") && isa_available(Isa::kAvx512);
#else
      return false;
#endif
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             isa_available(Isa::kAvx2);
    case Isa::kAvx2: {
      unsigned f16c = 0, a = 0, b = 0, d = 0;
      __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(f16c), "=d"(d) : "0"(1), "2"(0));
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (f16c >> 29 & 1);
    }
    default:
      return true;
  }
#else
  return level == Isa::kScalar;
#endif
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa level : kLevels) {
    if (isa_available(level)) names.emplace_back(isa_name(level));
  }
  return names;
}

Isa active_isa() { return static_cast<Isa>(slot().load(std::memory_order_relaxed)); }

void force_isa(const std::string& name) {
  slot().store(static_cast<int>(name.empty() ? chosen() : parse(name, "isa")));
}

}  // namespace headrace
