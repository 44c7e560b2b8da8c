// SPDX-License-Identifier: Apache-2.0
// What decode.cu is called with, and the kernel that cuts the views of a call into splits.
#pragma once
#include "kernels/common/device.cuh"
#include "plan.h"

namespace headrace {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kMaxDim = 256, kTileSlots = 64, kPlanRows = 1024,
              kPlanThreads = 512;

struct Split {
  int64_t seen,
      stop;  // visible tokens before the first entry; the first number that is not its own
  int32_t row, entry, last, list;
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
  int64_t q_row, q_head, k_page, k_head, v_page, v_head, pages, capacity, split;
  int64_t k_scale_page, k_scale_head, v_scale_page, v_scale_head;
  int32_t row0, rows, streams, q_heads, kv_heads, dim, page_size, half, q_dtype, kv_dtype;
  int32_t lists;                       // lists of entries of a stream: 1, or one for every kv head
  int32_t axes, fields;                // of positions, and columns of entries: 1 and 7, or 3 and 11
  int32_t k_scale_slot, v_scale_slot;  // 1, or 0 where a page has one scale
  int32_t few, listed, tokens;         // most rows of a stream that is served, 0 for any
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

// The rows of streams that bring no more than `few`, in order, then -1: other streams are another
// kernel's. One warp.
__device__ inline void list_rows(const Decode& a, int lane) {
  int64_t done = 0;
  for (int base = 0; base < a.streams; base += 32) {
    const int b = base + lane, first = b < a.streams ? a.q_indptr[b] : 0;
    const int rows = b < a.streams ? a.q_indptr[b + 1] - first : 0;
    const int mine = rows > 0 && rows <= a.few ? rows : 0;
    const int64_t end = done + warp_inclusive(mine, lane);
    for (int i = 0; i < mine && end - mine + i < a.listed; ++i) {
      const int row = first + i;
      a.served[end - mine + i] = row >= 0 && row < a.tokens ? row : -1;
    }
    done = __shfl_sync(kAll, end, 31);
  }
  for (int64_t i = done + lane; i < a.listed; i += 32) a.served[i] = -1;
}

// The row that a launch counts as number r; -1 for none.
__device__ inline int row_of(const Decode& a, int r) {
  return a.few > 0 ? a.served[a.row0 + r] : a.row0 + r;
}

// One block: the first split of every row (of every row and list), then the entries at which
// splits start.
__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const Decode a) {
  __shared__ int64_t seen[kPlanRows];
  __shared__ int32_t first_split[kPlanRows];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int32_t done = 0;
  const int total = a.rows * a.lists;
  if (a.few > 0) {
    if (warp == 0) list_rows(a, lane);
    __syncthreads();
  }
  for (int base = 0; base < total; base += kPlanRows) {
    const int n = total - base < kPlanRows ? total - base : kPlanRows;
    for (int r = warp; r < n; r += warps) {
      const int row = row_of(a, (base + r) / a.lists);
      if (row < 0) {
        if (lane == 0) seen[r] = -1;
        continue;
      }
      const int list = owner(a.q_indptr, a.streams, row) * a.lists + (base + r) % a.lists;
      const int last = a.entry_indptr[list + 1];
      int64_t sum = 0;
      for (int e = a.entry_indptr[list] + lane; e < last; e += 32) {
        const Range keys =
            entry_keys(a.entries + int64_t{e} * a.fields, a.pages, a.page_size, a.q_order[row]);
        sum += keys.hi - keys.lo;
      }
      for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(kAll, sum, o);
      if (lane == 0) seen[r] = sum;
    }
    __syncthreads();
    for (int r = lane; warp == 0 && r - lane < n; r += 32) {
      const bool served = r < n && seen[r] >= 0;
      const int64_t mine =
          served ? split_count(seen[r], split_tokens(seen[r], a.split, a.page_size)) : 0;
      const int64_t end = done + warp_inclusive(mine, lane);
      if (r < n) {
        first_split[r] = static_cast<int32_t>(end - mine);
        a.starts[base + r] = static_cast<int32_t>(end - mine);
        if (base + r + 1 == total) a.starts[total] = static_cast<int32_t>(end);
      }
      done = static_cast<int32_t>(__shfl_sync(kAll, end, 31));
    }
    __syncthreads();
    for (int r = warp; r < n; r += warps) {
      if (seen[r] < 0) continue;
      const int row = row_of(a, (base + r) / a.lists), own = (base + r) % a.lists;
      const int list = owner(a.q_indptr, a.streams, row) * a.lists + own;
      const int last = a.entry_indptr[list + 1];
      const int64_t tokens = split_tokens(seen[r], a.split, a.page_size);
      const int count = split_count(seen[r], tokens);
      Split* out = a.splits + first_split[r];
      int64_t passed = 0;
      int started = -1;  // the last split that has an entry
      for (int e0 = a.entry_indptr[list]; e0 < last; e0 += 32) {
        const int e = e0 + lane;
        int64_t keys = 0;
        if (e < last) {
          const Range range =
              entry_keys(a.entries + int64_t{e} * a.fields, a.pages, a.page_size, a.q_order[row]);
          keys = range.hi - range.lo;
        }
        const int64_t end = passed + warp_inclusive(keys, lane), begin = end - keys;
        const int mine = keys > 0 ? static_cast<int>(begin / tokens) : -1;
        int top = mine;
        for (int o = 1; o < 32; o *= 2) {
          const int other = __shfl_up_sync(kAll, top, o);
          if (lane >= o && other > top) top = other;
        }
        int before = __shfl_up_sync(kAll, top, 1);
        if (lane == 0 || before < started) before = started;
        if (mine > before) out[mine] = {begin, (mine + 1) * tokens, row, e, last, own};
        passed = __shfl_sync(kAll, end, 31);
        const int newest = __shfl_sync(kAll, top, 31);
        if (newest > started) started = newest;
      }
      for (int s = started + 1 + lane; s < count; s += 32) out[s] = {0, 0, row, last, last, own};
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace headrace
