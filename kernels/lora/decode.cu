// SPDX-License-Identifier: Apache-2.0
// Low-rank updates, gathered from the rank rows of every row's adapters, in two launches. shrink
// fills an fp32 bridge, expand adds it times B to y. Each bridge value and each output has one
// owner and one order of sums, so nothing is zeroed first and nothing is added atomically, and a
// row has the same bits in every batch: where rows are many, consecutive ones of the same adapters
// read weights together, but every row's sums stay its own. Grids depend on sizes alone; slots,
// lists and ranks are read on the device, so a captured graph replays over any mix. What names a
// slot or a rank row that is not there counts as none. Not yet seen running on a GPU.
#include "decode.cuh"

namespace headrace {
namespace {

constexpr int kShrinkThreads = 128, kExpandThreads = 64;
constexpr int kRows = 2;    // rank rows that a block of shrink takes together
constexpr int kSplits = 8;  // blocks that share the rank rows of one row, slice and adapter
constexpr int kFew = 128;   // rows that fill a device by themselves; more go together
constexpr int kTogether = 8;

// Rows [token, token + run) of one slot, times its rank rows kRows * split onwards, in steps of all
// splits. A weight is read once for all rows; a sum's order does not depend on how many there are.
template <class P, bool Wide, int Tokens>
__device__ inline void shrink_run(const Lora& a, int64_t token, int run, int slice, int w,
                                  int32_t slot, int split, float (*partial)[Tokens][kRows]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const RankRows list = rank_rows(a, slot, slice);
  const int64_t x_at = token * a.x_row;
  const P* pool = static_cast<const P*>(a.a) + slice * a.a_slice;
  for (int r = split * kRows; r < list.count; r += a.splits * kRows) {
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
    float sums[Tokens][kRows];
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) sums[t][i] = 0.f;
    }
    constexpr int kWord = Wide ? 8 : 1, kUnroll = Wide && Tokens == 1 ? 4 : 1;
#pragma unroll kUnroll
    for (int k = threadIdx.x * kWord; k < a.depth; k += kShrinkThreads * kWord) {
      float weight[kRows][kWord];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (!rows[i]) continue;
        if constexpr (Wide) {
          weights_8(rows[i], scales[i], a.a_group, k, weight[i]);
        } else {
          weight[i][0] = weight_at(rows[i], scales[i], a.a_group, k);
        }
      }
#pragma unroll
      for (int t = 0; t < Tokens; ++t) {
        if (t > 0 && t >= run) continue;
        float x[kWord];
        if constexpr (Wide) {
          load_8(a.x, x_at + t * a.x_row + k, a.x_dtype, x);
        } else {
          x[0] = load_any(a.x, x_at + t * a.x_row + k, a.x_dtype);
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          if (!rows[i]) continue;
#pragma unroll
          for (int j = 0; j < kWord; ++j) sums[t][i] = fmaf(x[j], weight[i][j], sums[t][i]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        for (int by = 16; by > 0; by /= 2) sums[t][i] += __shfl_xor_sync(kAll, sums[t][i], by);
        if (lane == 0) partial[warp][t][i] = sums[t][i];
      }
    }
    __syncthreads();
    const int t = threadIdx.x / kRows, i = threadIdx.x % kRows;
    if (t < run && r + i < list.count) {
      float sum = partial[0][t][i];
#pragma unroll
      for (int other = 1; other < kShrinkThreads / 32; ++other) sum += partial[other][t][i];
      a.bridge[bridge_at(a, token + t, slice, w) + r + i] = sum * factor_of(a, token + t, w, slot);
    }
    __syncthreads();
  }
}

// How many rows from `token` on, before `last`, use the same adapters in places [from, to).
template <int Tokens>
__device__ inline int run_of(const Lora& a, int64_t token, int64_t last, int from, int to) {
  int run = 1;
  for (; run < Tokens && token + run < last; ++run) {
    for (int w = from; w < to; ++w) {
      if (slot_of(a, token + run, w) != slot_of(a, token, w)) return run;
    }
  }
  return run;
}

// Unit (group of rows, slice, adapter, split).
template <class P, bool Wide, int Tokens>
__global__ void __launch_bounds__(kShrinkThreads, 4) shrink_kernel(const Lora a) {
  __shared__ float partial[kShrinkThreads / 32][Tokens][kRows];
  const int unit = blockIdx.x / a.splits, split = blockIdx.x % a.splits;
  const int w = unit % a.width, slice = unit / a.width % a.slices;
  const int64_t first = int64_t{unit / a.width / a.slices} * Tokens;
  const int64_t last = first + Tokens < a.tokens ? first + Tokens : a.tokens;
  int64_t token = first;
  do {
    const int run = run_of<Tokens>(a, token, last, w, w + 1);
    const int32_t slot = slot_of(a, token, w);
    if (slot >= 0) shrink_run<P, Wide, Tokens>(a, token, run, slice, w, slot, split, partial);
    token += run;
  } while (Tokens > 1 && token < last);
}

// acc[8] of each row += its bridge times columns [n, n + 8) of B, of those columns in [begin, end).
template <class P, bool Wide, int Tokens>
__device__ inline void add_slice(const Lora& a, int64_t token, int run, int slice, int64_t n,
                                 int64_t begin, int64_t end, float (*acc)[8]) {
  constexpr int kUnroll = Wide && Tokens == 1 ? 4 : 1;
  for (int w = 0; w < a.width; ++w) {
    const int32_t slot = slot_of(a, token, w);
    if (slot < 0) continue;
    const RankRows list = rank_rows(a, slot, slice);
    const float* bridge = a.bridge + bridge_at(a, token, slice, w);
    const int64_t next = bridge_at(a, 1, 0, 0);
#pragma unroll kUnroll
    for (int r = 0; r < list.count; ++r) {
      const int64_t row = row_at(a, list, r);
      if (row < 0) continue;
      const P* up =
          static_cast<const P*>(a.b) + (a.rows ? row * a.b_slot : slot * a.b_slot + r * a.b_rank);
      const float* scales = kCodes<P> ? a.b_scale + row * (a.outputs / a.b_group) : nullptr;
      float weight[8];
      if constexpr (Wide) {
        weights_8(up, scales, a.b_group, n, weight);
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          if (n + j < begin || n + j >= end) continue;
          weight[j] = kCodes<P> ? weight_at(up, scales, a.b_group, n + j)
                                : weight_at(up + (n + j) * a.b_col, nullptr, 1, 0);
        }
      }
#pragma unroll
      for (int t = 0; t < Tokens; ++t) {
        if (t > 0 && t >= run) continue;
        const float c = bridge[t * next + r];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const bool own = n + j >= begin && n + j < end;
          acc[t][j] = own ? fmaf(c, weight[j], acc[t][j]) : acc[t][j];
        }
      }
    }
  }
}

// y[8] of one row += acc, with the bias and the gain of its adapters.
template <bool Wide>
__device__ inline void finish_row(const Lora& a, int64_t token, int64_t n, float* acc) {
  int32_t gain_row = -1;
  for (int w = 0; w < a.width && a.epilogue; ++w) {
    const int32_t slot = slot_of(a, token, w);
    if (slot < 0) continue;
    const int32_t own = a.gain ? a.epilogue[slot * 2 + 1] : -1, row = a.epilogue[slot * 2];
    gain_row = own >= 0 && own < a.gains ? own : gain_row;
    if (!a.bias || row < 0 || row >= a.biases) continue;
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

// Some rows and kExpandThreads * 8 columns of y.
template <class P, bool Wide, int Tokens>
__global__ void __launch_bounds__(kExpandThreads, Tokens > 1 ? 4 : 8) expand_kernel(const Lora a) {
  const int strips = static_cast<int>((a.outputs + kExpandThreads * 8 - 1) / (kExpandThreads * 8));
  const int64_t first = int64_t{blockIdx.x / strips} * Tokens;
  const int64_t last = first + Tokens < a.tokens ? first + Tokens : a.tokens;
  const int64_t n = (static_cast<int64_t>(blockIdx.x % strips) * kExpandThreads + threadIdx.x) * 8;
  if (n >= a.outputs) return;
  int64_t token = first;
  do {
    const int run = run_of<Tokens>(a, token, last, 0, a.width);
    bool used = false;
    for (int w = 0; w < a.width; ++w) used = used || slot_of(a, token, w) >= 0;
    float acc[Tokens][8];
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
#pragma unroll
      for (int j = 0; j < 8; ++j) acc[t][j] = 0.f;
    }
    int64_t begin = 0;
    for (int slice = 0; used && slice < a.slices; ++slice) {
      const int64_t end = a.slice_ends ? a.slice_ends[slice] : a.outputs;
      if (begin < n + 8 && end > n) {
        add_slice<P, Wide, Tokens>(a, token, run, slice, n, begin, end, acc);
      }
      begin = end;
    }
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
      if (used && t < run) finish_row<Wide>(a, token + t, n, acc[t]);
    }
    token += run;
  } while (Tokens > 1 && token < last);
}

inline bool aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

template <class P, int Tokens>
cudaError_t run(Lora a, void* stream) {
  const int64_t groups = (int64_t{a.tokens} + Tokens - 1) / Tokens;
  const int64_t units = groups * a.slices * a.width;
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
    const auto kernel =
        x_wide && a_wide ? shrink_kernel<P, true, Tokens> : shrink_kernel<P, false, Tokens>;
    const cudaError_t error = launch(kernel, units * a.splits, kShrinkThreads, stream, a);
    if (error) return error;
  }
  const int64_t strips = (a.outputs + kExpandThreads * 8 - 1) / (kExpandThreads * 8);
  const auto kernel =
      y_wide && b_wide ? expand_kernel<P, true, Tokens> : expand_kernel<P, false, Tokens>;
  return launch(kernel, groups * strips, kExpandThreads, stream, a);
}

template <class P>
cudaError_t run(const Lora& a, void* stream) {
  return a.tokens > kFew ? run<P, kTogether>(a, stream) : run<P, 1>(a, stream);
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
