// SPDX-License-Identifier: Apache-2.0
#include "args.h"
#include "csrc/simd/vec.h"

namespace {

std::int64_t multiply_add(std::int64_t rounds, float* sink) {
  constexpr int kChains = 12;  // more than latency times units
  F acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = set1(static_cast<float>(i));
  const F a = set1(0.999f), b = set1(1e-3f);
  for (std::int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], a, b);
  }
  F sum = zero();
  for (int i = 0; i < kChains; ++i) sum = add(sum, acc[i]);
  *sink = hsum(sum);
  return rounds * kChains * kW;
}

// A dot product takes longer than a multiply-add; more chains would not be unrolled.
[[maybe_unused]] constexpr int kDots = 16;

#if defined(HEADRACE_DOTS)
std::int64_t bf16_dots(std::int64_t rounds, float* sink) {
  F acc[kDots];
  for (int i = 0; i < kDots; ++i) acc[i] = set1(static_cast<float>(i));
  const std::uint16_t small[2] = {0x3c00, 0x3c00};  // 2^-7
  const Pairs a = set1_pair(small);
  for (std::int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kDots; ++i) acc[i] = dot(a, a, acc[i]);
  }
  F sum = zero();
  for (int i = 0; i < kDots; ++i) sum = add(sum, acc[i]);
  *sink = hsum(sum);
  return rounds * kDots * kW * 2;
}
#else
constexpr auto bf16_dots = multiply_add;  // widened
#endif

#if defined(HEADRACE_WHOLE_DOTS)
std::int64_t int16_dots(std::int64_t rounds, float* sink) {
  Whole acc[kDots];
  for (int i = 0; i < kDots; ++i) acc[i] = no_whole();
  const std::int16_t one[2] = {1, 1};
  const Pairs a = set1_pair(one);
  for (std::int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kDots; ++i) acc[i] = dot16(a, a, acc[i]);
  }
  F sum = zero();
  for (int i = 0; i < kDots; ++i) sum = add(sum, to_float(acc[i]));
  *sink = hsum(sum);
  return rounds * kDots * kW * 2;
}
#else
constexpr auto int16_dots = multiply_add;
#endif

// Four places at once: a processor that fetches ahead along one of them waits for it more often.
void read(const float* data, std::int64_t begin, std::int64_t end, float* sink) {
  constexpr int kPlaces = 4, kEach = 2;
  const std::int64_t apart = (end - begin) / kPlaces / (kEach * kW) * (kEach * kW);
  F acc[kPlaces][kEach];
  for (auto& place : acc) {
    for (F& sum : place) sum = zero();
  }
  for (std::int64_t at = begin; at < begin + apart; at += kEach * kW) {
    for (int p = 0; p < kPlaces; ++p) {
      for (int i = 0; i < kEach; ++i) {
        acc[p][i] = add(acc[p][i], load(data + at + p * apart + i * kW));
      }
    }
  }
  float rest = 0.f;
  for (std::int64_t at = begin + kPlaces * apart; at < end; ++at) rest += data[at];
  F sum = zero();
  for (const auto& place : acc) {
    for (const F& one : place) sum = add(sum, one);
  }
  *sink = hsum(sum) + rest;
}

}  // namespace

extern "C" const headrace::ProbeKernels HEADRACE_JOIN(headrace_probe_, HEADRACE_LEVEL) = {
    multiply_add,
    bf16_dots,
    int16_dots,
    read,
};
