// SPDX-License-Identifier: Apache-2.0
// What decode.cu is called with, and what its kernels share.
#pragma once
#include "kernels/common/device.cuh"
#include "plan.h"
#include "rotary.h"

namespace headrace {
namespace {

constexpr int kMaxDim = 256, kTileSlots = 64, kThreads = 128;

// A run of entries of one row's view (of one of its lists), which one block takes.
struct Split {
  int32_t row, entry, end, list;
};

}  // namespace

// What the caller hands over; tensors as pointers, strides in elements. Mirrored in cuda.py.
struct Decode {
  const void *q, *k, *v;
  void* o;
  float* lse;
  const int64_t* entries;
  const int32_t *entry_indptr, *q_indptr;
  const int64_t *q_pos, *q_order;
  const double* inv_freq;
  const int32_t* freq_axis;                      // [half], null with one axis
  const float *sink_logits, *k_scale, *v_scale;  // scales null for pages of floats
  Split* splits;                                 // [capacity]
  int32_t* starts;                               // [rows * lists + 1]
  int32_t* served;                               // [listed], see list_rows
  float* partial;                                // [capacity, q_heads / lists, dim + 2]
  int32_t* packs;                                // [1 + capacity * fit], null where fit is 1
  int64_t q_row, q_head, k_page, k_head, v_page, v_head, pages, capacity, split;
  int64_t k_scale_page, k_scale_head, v_scale_page, v_scale_head;
  int32_t row0, rows, streams, q_heads, kv_heads, dim, page_size, half, q_dtype, kv_dtype;
  int32_t lists;                       // lists of entries of a stream: 1, or one for every kv head
  int32_t axes, fields;                // of positions, and columns of entries: 1 and 7, or 3 and 11
  int32_t k_scale_slot, v_scale_slot;  // 1, or 0 where a page has one scale
  int32_t few, listed, tokens;         // most rows of a stream that is served, 0 for any
  int32_t fit;                         // splits that a pack may hold, see pack_kernel
  float scale, softcap, rope_gain;
};

namespace {

__device__ inline int64_t warp_inclusive(int64_t x, int lane) {
  for (int o = 1; o < 32; o *= 2) {
    const int64_t other = __shfl_up_sync(kAll, x, o);
    if (lane >= o) x += other;
  }
  return x;
}

// The row that a launch counts as number r; -1 for none.
__device__ inline int row_of(const Decode& a, int r) {
  return a.few > 0 ? a.served[a.row0 + r] : a.row0 + r;
}

// c tanh(x / c); a series where 1 - exp would cancel.
__device__ inline float soft_cap(float x, float cap) {
  const float y = x / cap, a = fabsf(y), z = y * y;
  const float e = exp2f(a * (-2.f * kLog2e));
  const float near =
      a * (1.f + z * (-1.f / 3 + z * (2.f / 15 + z * (-17.f / 315 + z * (62.f / 2835)))));
  const float t = a < 0.25f ? near : (1.f - e) / (1.f + e);
  return y < 0 ? -cap * t : cap * t;
}

// Distances along up to three axes; named, so that no index keeps them in local memory.
struct Steps {
  int64_t x, y, z;
  __device__ int64_t along(int axis) const { return axis == 0 ? x : axis == 1 ? y : z; }
};
__device__ inline Steps steps_to(const int64_t* position, const int64_t* entry, int axes) {
  const int64_t x = distance_along(0, position, entry);
  if (axes == 1) return {x, 0, 0};
  return {x, distance_along(1, position, entry), distance_along(2, position, entry)};
}

template <class T>
constexpr bool kCodes = sizeof(T) == 1;

__device__ inline float finite_base(float m) { return m == -INFINITY ? 0.f : m; }

}  // namespace
}  // namespace headrace
