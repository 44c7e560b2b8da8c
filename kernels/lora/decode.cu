// SPDX-License-Identifier: Apache-2.0
// Low-rank updates for few rows: every row on its own, gathered from its adapters' rank rows, in
// two launches. shrink fills an fp32 bridge, expand adds it times B to y. Each bridge value and
// each output has one owner and one order of sums, so nothing is zeroed first and nothing is added
// atomically, and a row has the same bits in every batch. Grids depend on sizes alone; slots, lists
// and ranks are read on the device, so a captured graph replays over any mix. What names a slot or
// a rank row that is not there counts as none. Not yet seen running on a GPU.
#include "decode.cuh"

namespace headrace {
namespace {

constexpr int kShrinkThreads = 128, kExpandThreads = 64;
constexpr int kRows = 2;    // rank rows that a block of shrink takes together
constexpr int kSplits = 8;  // blocks that share the rank rows of one row, slice and adapter

// Unit (row, slice, adapter, split): rank rows kRows * split onwards, in steps of all splits.
template <class P, bool Wide>
__global__ void __launch_bounds__(kShrinkThreads) shrink_kernel(const Lora a) {
  __shared__ float partial[kShrinkThreads / 32][kRows];
  const int unit = blockIdx.x / a.splits, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int w = unit % a.width, slice = unit / a.width % a.slices;
  const int64_t token = unit / a.width / a.slices;
  const int32_t slot = slot_of(a, token, w);
  if (slot < 0) return;
  const RankRows list = rank_rows(a, slot, slice);
  const int64_t x_at = token * a.x_row;
  const float factor = factor_of(a, token, w, slot);
  const P* pool = static_cast<const P*>(a.a) + slice * a.a_slice;
  for (int r = blockIdx.x % a.splits * kRows; r < list.count; r += a.splits * kRows) {
    const P* rows[kRows];
    const float* scales[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t row = r + i < list.count ? row_at(a, list, r + i) : -1;
      rows[i] = row < 0 ? nullptr : pool + row * a.a_row;
      scales[i] = row < 0 || !kCodes<P>
                      ? nullptr
                      : a.a_scale + (row * a.slices + slice) * (a.depth / a.a_group);
    }
    float sums[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) sums[i] = 0.f;
    if constexpr (Wide) {
#pragma unroll 4
      for (int k = threadIdx.x * 8; k < a.depth; k += kShrinkThreads * 8) {
        float x[8];
        load_8(a.x, x_at + k, a.x_dtype, x);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          if (!rows[i]) continue;
          float weight[8];
          weights_8(rows[i], scales[i], a.a_group, k, weight);
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[i] = fmaf(x[j], weight[j], sums[i]);
        }
      }
    } else {
      for (int k = threadIdx.x; k < a.depth; k += kShrinkThreads) {
        const float x = load_any(a.x, x_at + k, a.x_dtype);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          if (rows[i]) sums[i] = fmaf(x, weight_at(rows[i], scales[i], a.a_group, k), sums[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      for (int by = 16; by > 0; by /= 2) sums[i] += __shfl_xor_sync(kAll, sums[i], by);
      if (lane == 0) partial[warp][i] = sums[i];
    }
    __syncthreads();
    const int i = threadIdx.x;
    if (i < kRows && r + i < list.count) {
      float sum = partial[0][i];
#pragma unroll
      for (int other = 1; other < kShrinkThreads / 32; ++other) sum += partial[other][i];
      a.bridge[bridge_at(a, token, slice, w) + r + i] = sum * factor;
    }
    __syncthreads();
  }
}

// acc[8] += the bridge times columns [n, n + 8) of B, of those columns in [begin, end).
template <class P, bool Wide>
__device__ inline void add_slice(const Lora& a, int64_t token, int slice, int64_t n, int64_t begin,
                                 int64_t end, float* acc) {
  constexpr int kUnroll = Wide ? 4 : 1;
  for (int w = 0; w < a.width; ++w) {
    const int32_t slot = slot_of(a, token, w);
    if (slot < 0) continue;
    const RankRows list = rank_rows(a, slot, slice);
    const float* bridge = a.bridge + bridge_at(a, token, slice, w);
#pragma unroll kUnroll
    for (int r = 0; r < list.count; ++r) {
      const int64_t row = row_at(a, list, r);
      if (row < 0) continue;
      const float c = bridge[r];
      const P* up =
          static_cast<const P*>(a.b) + (a.rows ? row * a.b_slot : slot * a.b_slot + r * a.b_rank);
      const float* scales = kCodes<P> ? a.b_scale + row * (a.outputs / a.b_group) : nullptr;
      if constexpr (Wide) {
        float weight[8];
        weights_8(up, scales, a.b_group, n, weight);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const bool own = n + j >= begin && n + j < end;
          acc[j] = own ? fmaf(c, weight[j], acc[j]) : acc[j];
        }
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (n + j < begin || n + j >= end) continue;
          const float weight = kCodes<P> ? weight_at(up, scales, a.b_group, n + j)
                                         : weight_at(up + (n + j) * a.b_col, nullptr, 1, 0);
          acc[j] = fmaf(c, weight, acc[j]);
        }
      }
    }
  }
}

// One row and kExpandThreads * 8 columns of y.
template <class P, bool Wide>
__global__ void __launch_bounds__(kExpandThreads) expand_kernel(const Lora a) {
  const int strips = static_cast<int>((a.outputs + kExpandThreads * 8 - 1) / (kExpandThreads * 8));
  const int64_t token = blockIdx.x / strips;
  const int64_t n = (static_cast<int64_t>(blockIdx.x % strips) * kExpandThreads + threadIdx.x) * 8;
  bool used = false;
  int32_t gain_row = -1;
  for (int w = 0; w < a.width; ++w) {
    const int32_t slot = slot_of(a, token, w);
    used = used || slot >= 0;
    if (slot >= 0 && a.epilogue && a.gain && a.epilogue[slot * 2 + 1] < a.gains) {
      gain_row = a.epilogue[slot * 2 + 1] >= 0 ? a.epilogue[slot * 2 + 1] : gain_row;
    }
  }
  if (!used || n >= a.outputs) return;
  float acc[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) acc[j] = 0.f;
  int64_t begin = 0;
  for (int slice = 0; slice < a.slices; ++slice) {
    const int64_t end = a.slice_ends ? a.slice_ends[slice] : a.outputs;
    if (begin < n + 8 && end > n) add_slice<P, Wide>(a, token, slice, n, begin, end, acc);
    begin = end;
  }
  for (int w = 0; w < a.width && a.epilogue && a.bias; ++w) {
    const int32_t slot = slot_of(a, token, w);
    const int32_t row = slot < 0 ? -1 : a.epilogue[slot * 2];
    if (row < 0 || row >= a.biases) continue;
    const float factor = factor_of(a, token, w, slot);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (n + j < a.outputs) acc[j] = fmaf(factor, a.bias[row * a.outputs + n + j], acc[j]);
    }
  }
  const int64_t at = token * a.y_row + n;
  float y[8];
  if constexpr (Wide) {
    load_8(a.y, at, a.x_dtype, y);
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j) y[j] = n + j < a.outputs ? load_any(a.y, at + j, a.x_dtype) : 0.f;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (gain_row < 0 || n + j >= a.outputs) {
      y[j] += acc[j];
      continue;
    }
    const float base = a.base_bias ? a.base_bias[n + j] : 0.f;
    y[j] = fmaf(a.gain[gain_row * a.outputs + n + j], y[j] - base + acc[j], base);
  }
  if constexpr (Wide) {
    store_8(a.y, at, a.x_dtype, y);
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (n + j < a.outputs) store_any(a.y, at + j, a.x_dtype, y[j]);
    }
  }
}

inline bool aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

template <class P>
cudaError_t run(Lora a, void* stream) {
  const int64_t units = int64_t{a.tokens} * a.slices * a.width;
  const int64_t most = (a.most + kRows - 1) / kRows;
  a.splits = static_cast<int32_t>(most < kSplits ? most : kSplits);
  // Eight elements of any row of x, y or the pool are whole words.
  constexpr int64_t word = kCodes<P> ? 8 : 16;
  const bool x_wide = aligned(a.x, 16) && a.x_row % 8 == 0 && a.depth % 8 == 0;
  const bool y_wide = aligned(a.y, 16) && a.y_row % 8 == 0 && a.outputs % 8 == 0;
  const bool a_wide = aligned(a.a, word) && a.a_row % 8 == 0 && a.a_slice % 8 == 0 &&
                      (!kCodes<P> || a.a_group % 8 == 0);
  const bool b_wide = aligned(a.b, word) && a.b_slot % 8 == 0 && a.b_rank % 8 == 0 &&
                      a.b_col == 1 && (!kCodes<P> || a.b_group % 8 == 0);
  if (a.most > 0) {
    const auto kernel = x_wide && a_wide ? shrink_kernel<P, true> : shrink_kernel<P, false>;
    const cudaError_t error = launch(kernel, units * a.splits, kShrinkThreads, stream, a);
    if (error) return error;
  }
  const int64_t strips = (a.outputs + kExpandThreads * 8 - 1) / (kExpandThreads * 8);
  const auto kernel = y_wide && b_wide ? expand_kernel<P, true> : expand_kernel<P, false>;
  return launch(kernel, a.tokens * strips, kExpandThreads, stream, a);
}

}  // namespace
}  // namespace headrace

HEADRACE_EXPORT int64_t headrace_cuda_lora_bytes() { return sizeof(headrace::Lora); }

// Rows, columns and slots are not 0; the launches are two, or one where no slot has a rank row.
HEADRACE_EXPORT int headrace_cuda_lora(const headrace::Lora* a, void* stream) {
  switch (a->pool_dtype) {
    case 0:
      return headrace::run<float>(*a, stream);
    case 1:
      return headrace::run<headrace::bf16>(*a, stream);
    case 2:
      return headrace::run<__half>(*a, stream);
    case 3:
      return headrace::run<int8_t>(*a, stream);
    default:
      return headrace::run<headrace::Pair>(*a, stream);
  }
}
