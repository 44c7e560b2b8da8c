// SPDX-License-Identifier: Apache-2.0
// A stand-in for the CUDA runtime that runs kernels on one CPU thread: every CUDA thread is a
// fiber, and fibers change at barriers and warp shuffles. One block runs at a time; a barrier that
// not all of its threads reach ends the process.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaDevAttrMultiProcessorCount = 16 };
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

inline int emulated_processors = 2;
inline cudaError_t cudaGetDevice(int* d) { return *d = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* v, int, int) {
  *v = emulated_processors;
  return 0;
}
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

namespace emulation {

struct Barrier {
  int expected = 0, arrived = 0;
  unsigned generation = 0;
};
struct Fiber {
  ucontext_t context;  // to begin with
  jmp_buf place;       // to go on from: unlike a context, no signal mask is asked of the system
  std::unique_ptr<char[]> stack;
  Barrier* at = nullptr;
  unsigned generation = 0, products = 0;
  bool begun = false, done = false;
};
inline std::vector<Fiber> fibers;
inline std::vector<Barrier> warps;
inline Barrier block;
inline std::vector<uint64_t> exchange;  // a word for every thread
struct Fragment {
  uint32_t a[4], b[2];
};
inline std::vector<Fragment> fragments[2];  // of every thread, by turns
inline jmp_buf scheduler;
inline std::function<void()> body;
inline int current = 0;

inline void entry() {
  body();
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}

// Until it waits at a barrier that others have yet to reach, or is done.
inline void go_on(Fiber& f) {
  if (_setjmp(scheduler)) return;
  if (f.begun) _longjmp(f.place, 1);
  f.begun = true;
  setcontext(&f.context);
}

inline void wait(Barrier& b) {
  Fiber& me = fibers[current];
  if (++b.arrived == b.expected) {
    b.arrived = 0;
    ++b.generation;
    return;
  }
  me.at = &b;
  me.generation = b.generation;
  if (!_setjmp(me.place)) _longjmp(scheduler, 1);
}

}  // namespace emulation

template <class F>
inline void emulate(unsigned blocks, int threads, F run) {
  using namespace emulation;
  constexpr size_t kStack = 64 * 1024;
  body = run;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    fibers = std::vector<Fiber>(threads);
    warps.assign(threads / 32, Barrier{32});
    block = Barrier{threads};
    exchange.assign(threads, 0);
    for (auto& turn : fragments) turn.assign(threads, {});
    for (Fiber& f : fibers) {
      f.stack.reset(new char[kStack]);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = kStack;
      makecontext(&f.context, entry, 0);
    }
    for (int left = threads; left > 0;) {
      bool moved = false;
      left = 0;
      for (int t = 0; t < threads; ++t) {
        Fiber& f = fibers[t];
        if (f.done) continue;
        ++left;
        if (f.at && f.at->generation == f.generation) continue;
        f.at = nullptr;
        current = t;
        threadIdx.x = t;
        moved = true;
        go_on(f);
      }
      if (left > 0 && !moved) {
        fprintf(stderr, "emulation: a barrier was not reached by all of its threads\n");
        abort();
      }
    }
  }
}

inline void __syncthreads() { emulation::wait(emulation::block); }
inline void __syncwarp() { emulation::wait(emulation::warps[emulation::current / 32]); }

template <class T>
inline T emulated_exchange(T x, int from_lane, bool valid) {
  using namespace emulation;
  const int me = current, base = me / 32 * 32;
  memcpy(&exchange[me], &x, sizeof(T));
  __syncwarp();
  T got = x;
  if (valid) memcpy(&got, &exchange[base + from_lane], sizeof(T));
  __syncwarp();
  return got;
}
template <class T>
inline T __shfl_xor_sync(unsigned, T x, int by) {
  return emulated_exchange(x, (emulation::current % 32) ^ by, true);
}
template <class T>
inline T __shfl_up_sync(unsigned, T x, int by) {
  const int lane = emulation::current % 32;
  return emulated_exchange(x, lane - by, lane >= by);
}
template <class T>
inline T __shfl_sync(unsigned, T x, int lane) {
  return emulated_exchange(x, lane, true);
}

inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t select) {
  const uint64_t all = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= static_cast<uint32_t>(all >> (select >> 4 * i & 7) * 8 & 255) << 8 * i;
  }
  return out;
}
inline float __uint_as_float(uint32_t x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t y;
  memcpy(&y, &x, 4);
  return y;
}
inline int atomicAdd(int* to, int by) {
  const int old = *to;
  *to += by;
  return old;
}

// What a warp's tensor core makes of the fragments of mma.m16n8k16, 16-bit numbers read by `value`.
template <class F>
inline void emulated_multiply_add(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1,
                                  F value) {
  using namespace emulation;
  const int me = current, base = me / 32 * 32, lane = me % 32;
  std::vector<Fragment>& turn = fragments[fibers[me].products++ % 2];
  turn[me] = {{a.x, a.y, a.z, a.w}, {b0, b1}};
  __syncwarp();  // who writes the next ones but one has waited for all to have read these
  const auto of = [&](int from) { return &turn[base + from]; };
  const auto half = [](uint32_t word, int k) { return static_cast<uint16_t>(word >> k % 2 * 16); };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const uint32_t x = of(row % 8 * 4 + k % 8 / 2)->a[k / 8 * 2 + row / 8];
      const uint32_t y = of(column * 4 + k % 8 / 2)->b[k / 8];
      sum += static_cast<double>(value(half(x, k))) * value(half(y, k));
    }
    c[i] = static_cast<float>(sum);
  }
}
