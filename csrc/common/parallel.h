// SPDX-License-Identifier: Apache-2.0
// Work items over the threads that torch uses, which are OpenMP's. The caller says how many; items
// own their outputs, so the order in which threads take them leaves no trace in the result.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace headrace {

// Scratch for every thread of one call, aligned to cache lines.
class Scratch {
 public:
  Scratch(std::int64_t words_per_thread, int threads) : words_((words_per_thread + 15) / 16 * 16) {
    const std::size_t bytes = static_cast<std::size_t>(words_) * threads * sizeof(float);
    base_ = bytes ? static_cast<float*>(std::aligned_alloc(64, bytes)) : nullptr;
    if (bytes && !base_) throw std::bad_alloc();
  }
  ~Scratch() { std::free(base_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* of(int thread) const { return base_ + words_ * thread; }

 private:
  std::int64_t words_;
  float* base_;
};

// body(item, thread) for every item; serial when one thread is enough.
template <class Body>
void parallel(std::int64_t items, int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1 && items > 1) {
    const int team = items < threads ? static_cast<int>(items) : threads;
#pragma omp parallel for schedule(dynamic) num_threads(team)
    for (std::int64_t i = 0; i < items; ++i) body(i, omp_get_thread_num());
    return;
  }
#endif
  for (std::int64_t i = 0; i < items; ++i) body(i, 0);
}

// Threads worth waking for this many multiply-adds; a wake-up costs some microseconds.
inline int useful_threads(int threads, double work) {
  constexpr double kWorth = 2e5;
  const double most = work / kWorth;
  return most < 2 ? 1 : most < threads ? static_cast<int>(most) : threads;
}

}  // namespace headrace
