// SPDX-License-Identifier: Apache-2.0
// append in one pass: a block takes the rows of kTokens tokens of one head, rotates keys about the
// origin of their page, quantises, and writes keys as columns. Everything that says where is on the
// device, so a captured graph replays over other slots. Not yet seen running on a GPU.
#include "kernels/common/device.cuh"
#include "rotary.h"

namespace headrace {

// What the caller hands over; tensors as pointers, strides in elements. Mirrored in cuda.py.
struct Append {
  const void *k, *v;
  void *k_pages, *v_pages;
  const int64_t* where;      // [T, 2 + axes]
  const double* inv_freq;    // [half] or null
  const int32_t* freq_axis;  // [half], null with one axis
  float *k_scale, *v_scale;  // null for pages of floats
  int64_t k_row, k_head, v_row, v_head, k_page, k_page_head, v_page, v_page_head;
  int64_t k_scale_page, k_scale_head, v_scale_page, v_scale_head, tokens, pages;
  int32_t kv_heads, dim, page_size, half, axes, dtype, page_dtype;
  int32_t k_scale_slot, v_scale_slot;  // 1: written here; 0: a page has one scale, which is read
};

namespace {

constexpr int kTokens = 16, kWarps = 4, kThreads = 32 * kWarps, kMaxDim = 256;
constexpr float kTiny = 7.888609052210118e-31f;  // 2^-100: a row below it is stored as zeros

// The largest code; 0 for floats.
template <class T>
constexpr float kLargest = 0.f;
template <>
constexpr float kLargest<int8_t> = 127.f;
template <>
constexpr float kLargest<e4m3> = 448.f;

template <class T>
__device__ inline T stored(float x) {
  return narrow<T>(x);
}
// To the nearest whole number, ties to even, no further than 127; NaN becomes 0.
template <>
__device__ inline int8_t stored<int8_t>(float x) {
  return static_cast<int8_t>(x == x ? rintf(fminf(fmaxf(x, -127.f), 127.f)) : 0.f);
}
// To the nearest code, ties to even, no further than 448; infinities become NaN.
template <>
__device__ inline e4m3 stored<e4m3>(float x) {
  const uint32_t u = __float_as_uint(x), sign = u >> 24 & 0x80u, a = u & 0x7fffffffu;
  // The last bit of the sum counts 2^-9, the smallest code.
  const uint32_t low = __float_as_uint(__uint_as_float(a) + 24576.f) & 0xfu;
  uint32_t code = ((a + 0x7ffffu + (a >> 20 & 1u)) >> 20) - (120u << 3);
  if (a < 0x3c800000u) code = low;
  if (a > 0x43e00000u) code = 0x7eu;
  if (a >= 0x7f800000u) code = 0x7fu;
  return {static_cast<uint8_t>(sign | code)};
}

// Divides a row by its scale, by one warp; a scale per slot is the row's own and is written.
template <class T>
__device__ inline void to_codes(float* row, int dim, float* scale, bool own, int lane) {
  if constexpr (kLargest<T> > 0.f) {
    float by = 0.f;
    if (own) {
      float top = 0.f;
      int bad = 0;
      for (int d = lane; d < dim; d += 32) {
        const float a = fabsf(row[d]);
        top = fmaxf(top, a);
        bad |= !(a < INFINITY);
      }
      for (int o = 16; o > 0; o /= 2) {
        top = fmaxf(top, __shfl_xor_sync(kAll, top, o));
        bad |= __shfl_xor_sync(kAll, bad, o);
      }
      by = bad ? NAN : top < kTiny ? 0.f : top / kLargest<T>;
      if (lane == 0) *scale = by;
    } else {
      by = *scale;
    }
    for (int d = lane; d < dim; d += 32) row[d] = by == 0.f ? 0.f : row[d] / by;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) append_kernel(const Append a) {
  __shared__ float rows[kWarps][kMaxDim];
  __shared__ T keys[kMaxDim][kTokens + 4 / sizeof(T)];  // columns, as in a page
  __shared__ int64_t places[kTokens];                   // where in k_pages, -1: nowhere
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = a.dim;
  const int head = blockIdx.x % a.kv_heads;
  const int64_t begin = static_cast<int64_t>(blockIdx.x / a.kv_heads) * kTokens;
  float* row = rows[warp];
  for (int i = warp; i < kTokens; i += kWarps) {
    const int64_t t = begin + i;
    const int64_t* where = a.where + t * (2 + a.axes);
    const int64_t page = t < a.tokens ? where[0] : -1, slot = t < a.tokens ? where[1] : -1;
    const bool inside = page >= 0 && page < a.pages && slot >= 0 && slot < a.page_size;
    if (lane == 0) places[i] = inside ? page * a.k_page + head * a.k_page_head + slot : -1;
    if (!inside) continue;
    for (int d = lane; d < dim; d += 32) {
      row[d] = load_any(a.k, t * a.k_row + head * a.k_head + d, a.dtype);
    }
    __syncwarp();
    for (int j = lane; j < a.half; j += 32) {
      const int axis = a.freq_axis ? a.freq_axis[j] : 0;
      const int64_t offset = where[2 + (axis < 0 || axis >= a.axes ? 0 : axis)];
      float c, s;
      cos_sin(phase(offset, phase_step(a.inv_freq[j])), &c, &s);
      const float x = row[j], y = row[j + a.half];
      row[j] = x * c - y * s;
      row[j + a.half] = y * c + x * s;
    }
    __syncwarp();
    to_codes<T>(row, dim,
                a.k_scale + page * a.k_scale_page + head * a.k_scale_head + slot * a.k_scale_slot,
                a.k_scale_slot, lane);
    for (int d = lane; d < dim; d += 32) keys[d][i] = stored<T>(row[d]);
    __syncwarp();
    for (int d = lane; d < dim; d += 32) {
      row[d] = load_any(a.v, t * a.v_row + head * a.v_head + d, a.dtype);
    }
    to_codes<T>(row, dim,
                a.v_scale + page * a.v_scale_page + head * a.v_scale_head + slot * a.v_scale_slot,
                a.v_scale_slot, lane);
    T* out = static_cast<T*>(a.v_pages) + page * a.v_page + head * a.v_page_head + slot * dim;
    for (int d = lane; d < dim; d += 32) out[d] = stored<T>(row[d]);
    __syncwarp();
  }
  __syncthreads();
  // Lanes along the tokens: consecutive slots of a page are written together.
  const int token = threadIdx.x % kTokens;
  const int64_t place = places[token];
  if (place < 0) return;
  T* out = static_cast<T*>(a.k_pages) + place;
  for (int d = threadIdx.x / kTokens; d < dim; d += kThreads / kTokens) {
    out[static_cast<int64_t>(d) * a.page_size] = keys[d][token];
  }
}

template <class T>
cudaError_t append(const Append& a, void* stream) {
  const int64_t blocks = (a.tokens + kTokens - 1) / kTokens * a.kv_heads;
  return blocks ? launch(append_kernel<T>, blocks, kThreads, stream, a) : cudaError_t(0);
}

}  // namespace
}  // namespace headrace

HEADRACE_EXPORT int64_t headrace_cuda_append_bytes() { return sizeof(headrace::Append); }

// Launches on `stream` of the current device; gives a cudaError_t. Allocates nothing, syncs
// nothing.
HEADRACE_EXPORT int headrace_cuda_append(const headrace::Append* a, void* stream) {
  using namespace headrace;
  if (a->page_dtype == kF32) return append<float>(*a, stream);
  if (a->page_dtype == kBF16) return append<bf16>(*a, stream);
  if (a->page_dtype == kF16) return append<__half>(*a, stream);
  if (a->page_dtype == kI8) return append<int8_t>(*a, stream);
  return append<e4m3>(*a, stream);
}
