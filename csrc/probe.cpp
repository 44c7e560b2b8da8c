// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/probe/args.h"

namespace headrace {
namespace {

const ProbeKernels& kernels() { return HEADRACE_PICK(probe); }

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

double multiply_add_rate(double seconds, int threads) {
  constexpr std::int64_t kRounds = 200000;
  double best = 0;
  const double start = now();
  do {
    std::atomic<std::int64_t> done{0};
    const double begin = now();
    parallel(threads, threads, [&](std::int64_t, int) {
      float sink = 0;
      done += kernels().multiply_add(kRounds, &sink);
      volatile float keep = sink;
      (void)keep;
    });
    best = std::max(best, static_cast<double>(done.load()) / (now() - begin));
  } while (now() - start < seconds);
  return best;
}

double read_seconds(const float* data, std::int64_t words, int passes, int threads) {
  double best = 1e30;
  const std::int64_t share = (words + threads - 1) / threads;
  for (int pass = 0; pass < passes; ++pass) {
    const double begin = now();
    parallel(threads, threads, [&](std::int64_t i, int) {
      float sink = 0;
      kernels().read(data, std::min(words, i * share), std::min(words, (i + 1) * share), &sink);
      volatile float keep = sink;
      (void)keep;
    });
    best = std::min(best, now() - begin);
  }
  return best;
}

}  // namespace headrace
