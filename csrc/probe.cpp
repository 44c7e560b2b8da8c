// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/probe/args.h"

namespace headrace {
namespace {

const ProbeKernels& kernels() { return HEADRACE_PICK_VNNI(probe); }

// Words that a thread takes at a time. What a core's own cache can hold stays with its thread. More
// goes in pieces that threads take as they come, so that one that is held up holds up no other.
std::int64_t piece_of(std::int64_t words, int threads) {
  constexpr std::int64_t kOwn = 1 << 19, kPieces = 8;
  const std::int64_t share = std::max<std::int64_t>((words + threads - 1) / threads, 1);
  return threads > 1 && share > kOwn ? share / kPieces / 16 * 16 : share;
}

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

double multiply_add_rate(int dtype, double seconds, int threads) {
  constexpr std::int64_t kRounds =
      20000;  // some 30 us: most of them end before a thread is stopped
  const ProbeKernels& probe = kernels();
  const auto run = dtype == kBF16 ? probe.bf16_dots
                   : dtype == kI8 ? probe.int16_dots
                                  : probe.multiply_add;
  std::vector<double> best(static_cast<std::size_t>(threads));
  const double start = now();
  parallel(threads, threads, [&](std::int64_t i, int) {
    float sink = 0;
    for (double at = now(); at - start < seconds;) {
      const auto done = static_cast<double>(run(kRounds, &sink));
      const double then = now();
      double& mine = best[static_cast<std::size_t>(i)];
      // By the second half all of them are awake, and share what a core has.
      if (at - start > seconds / 2) mine = std::max(mine, done / (then - at));
      at = then;
    }
    volatile float keep = sink;
    (void)keep;
  });
  return std::accumulate(best.begin(), best.end(), 0.0);
}

double read_seconds(const float* data, std::int64_t words, std::int64_t again, int threads) {
  constexpr std::int64_t kNear = 1 << 12;
  const std::int64_t piece = piece_of(words, threads);
  const auto read = kernels().read;
  const double begin = now();
  parallel((words + piece - 1) / piece, threads, [&](std::int64_t i, int) {
    const std::int64_t end = std::min(words, (i + 1) * piece);
    std::int64_t at = i * piece;
    float sink = 0, sum = 0;
    for (std::int64_t upto; at < std::min(end, again); at = upto, sum += sink) {
      upto = std::min({at + kNear, end, again});
      for (int twice = 0; twice < 2; ++twice) read(data, at, upto, &sink);
    }
    if (at < end) read(data, at, end, &sink);
    volatile float keep = sum + sink;
    (void)keep;
  });
  return now() - begin;
}

double copy_seconds(const float* from, std::int64_t words, float* to, std::int64_t copied,
                    int threads) {
  const std::int64_t piece = piece_of(words, threads);
  const double share = static_cast<double>(copied) / static_cast<double>(words);
  const auto read = kernels().read;
  const double begin = now();
  parallel((words + piece - 1) / piece, threads, [&](std::int64_t i, int) {
    const std::int64_t at = i * piece, end = std::min(words, at + piece);
    const std::int64_t upto = at + static_cast<std::int64_t>(share * static_cast<double>(end - at));
    float sink = 0;
    if (at < upto) std::memcpy(to + at, from + at, (upto - at) * sizeof(float));
    if (upto < end) read(from, upto, end, &sink);
    volatile float keep = sink;
    (void)keep;
  });
  return now() - begin;
}

}  // namespace headrace
