// SPDX-License-Identifier: Apache-2.0
// Cuts the views of a call into splits, on the device.
#pragma once
#include "decode.cuh"

namespace headrace {
namespace {

constexpr int kPlanRows = 1024, kPlanThreads = 512;

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

// One block: the first split of every row (of every row and list), then the entries at which
// splits start.
__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const Decode a) {
  __shared__ int64_t seen[kPlanRows];
  __shared__ int32_t first_split[kPlanRows];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int32_t done = 0;
  const int total = a.rows * a.lists;
  if (a.packs && threadIdx.x == 0) a.packs[0] = 0;
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
        if (mine > before) out[mine] = {row, e, last, own};
        __syncwarp();  // the end of a split follows what it began with
        if (mine > before && before >= 0) out[before].end = e;
        passed = __shfl_sync(kAll, end, 31);
        const int newest = __shfl_sync(kAll, top, 31);
        if (newest > started) started = newest;
      }
      for (int s = started + 1 + lane; s < count; s += 32) out[s] = {row, last, last, own};
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace headrace
