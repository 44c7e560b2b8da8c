// SPDX-License-Identifier: Apache-2.0
// Numbers, wide loads and launches for the CUDA kernels. Compiles without nvcc too, against a
// stand-in for the runtime, so that tests run kernels on a CPU.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#define HEADRACE_EXPORT extern "C" __attribute__((visibility("default")))

namespace headrace {
namespace {

enum DType : int { kF32, kBF16, kF16, kI8, kE4M3 };

struct bf16 {
  uint16_t bits;
};

// Float of 4 exponent and 3 fraction bits, without infinities: 0x7f is NaN, 448 the largest.
struct e4m3 {
  uint8_t bits;
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ inline float widen(__half x) { return __half2float(x); }

template <class T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline bf16 narrow<bf16>(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

__device__ inline float load_any(const void* p, int64_t i, int dtype) {
  if (dtype == kF32) return static_cast<const float*>(p)[i];
  if (dtype == kBF16) return widen(static_cast<const bf16*>(p)[i]);
  return widen(static_cast<const __half*>(p)[i]);
}
__device__ inline void store_any(void* p, int64_t i, int dtype, float x) {
  if (dtype == kF32) {
    static_cast<float*>(p)[i] = x;
  } else if (dtype == kBF16) {
    static_cast<bf16*>(p)[i] = narrow<bf16>(x);
  } else {
    static_cast<__half*>(p)[i] = narrow<__half>(x);
  }
}

// N elements, loaded and stored as one word of up to 16 bytes.
template <class T, int N = 16 / sizeof(T)>
struct alignas(N * sizeof(T)) Vec {
  static constexpr int size = N;
  T at[N];
};
template <class V, class T>
__device__ inline V load_vec(const T* p) {
  return *reinterpret_cast<const V*>(p);
}

template <class T, int N>
__device__ inline void widen_all(const Vec<T, N>& x, float* out) {
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = widen(x.at[i]);
}
// A byte, made unsigned, as the last bits of 2^23: conversions of integers are slow, sums are not.
template <int N>
__device__ inline void widen_all(const Vec<int8_t, N>& x, float* out) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    uint32_t word;
    memcpy(&word, x.at + i, 4);
    word ^= 0x80808080u;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out[i + j] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + j)) - 8388736.f;
    }
  }
}
// Two at a time in the bits of fp16, which then reads 2^-8 of the value, subnormals included.
// Adding one to the magnitude 0x7f, and to no other, carries into the exponent bit that makes it
// NaN.
template <int N>
__device__ inline void widen_all(const Vec<e4m3, N>& x, float* out) {
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    uint16_t pair;
    memcpy(&pair, x.at + i, 2);
    const uint32_t high = __byte_perm(pair, 0, 0x1404);  // each in the upper half of 16 bits
    const uint32_t magnitude = (high & 0x7f007f00u) >> 1;
    const uint32_t half =
        (high & 0x80008000u) | magnitude | ((magnitude + 0x00800080u) & 0x40004000u);
    out[i] = __half2float(__ushort_as_half(static_cast<uint16_t>(half))) * 256.f;
    out[i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(half >> 16))) * 256.f;
  }
}

constexpr unsigned kAll = 0xffffffffu;
constexpr float kLog2e = 1.44269504088896f, kLn2 = 0.693147180559945f;

#ifdef __CUDACC__
template <class... Params, class... Args>
inline cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, void* stream,
                          const Args&... args) {
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(args...);
  return cudaGetLastError();
}
#else
template <class... Params, class... Args>
inline cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, void*,
                          const Args&... args) {
  emulate(static_cast<unsigned>(blocks), threads, [&] { kernel(args...); });
  return 0;
}
#endif

}  // namespace
}  // namespace headrace
