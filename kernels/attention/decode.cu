// SPDX-License-Identifier: Apache-2.0
// paged_attention for decode rows: every query row on its own, its view cut into splits of whole
// entries (plan.h), the query heads of a kv head together, so that keys and values are read once.
//
// plan numbers the splits on the device, pack puts those together that read the same keys, attend
// runs them on a grid that does not depend on their number, join puts the splits of a row together
// in order. No host value depends on the view, so a
// captured graph replays over edited views. Streams of more rows than `few` may be left to another
// kernel: their rows are found on the device, too. Not yet seen running on a GPU.
#include "attend.cuh"
#include "attend_tensor.cuh"
#include "packs.cuh"
#include "plan.cuh"

namespace headrace {
namespace {

// One row and head: joins its splits; the learned sink joins the denominator here and nowhere else.
__global__ void __launch_bounds__(kThreads, 8) join_kernel(const Decode a) {
  __shared__ float share[kMaxSplits];
  const int r = blockIdx.x / a.q_heads, head = blockIdx.x % a.q_heads, lane = threadIdx.x % 32;
  const int row = row_of(a, r);
  if (row < 0) return;
  const int held = a.q_heads / a.lists;  // query heads of a list
  const int32_t* starts = a.starts + r * a.lists + head / held;
  const int64_t first = starts[0];
  const int count = static_cast<int>(starts[1] - first), words = a.dim + 2;
  const float* from = a.partial + (first * held + head % held) * words;
  const int64_t next = static_cast<int64_t>(held) * words;
  const int64_t out = static_cast<int64_t>(row) * a.q_heads + head;
  if (threadIdx.x < 32) {
    float top = -INFINITY, sum = 0.f;
    for (int i = lane; i < count; i += 32) top = fmaxf(top, from[i * next + a.dim]);
    for (int o = 16; o > 0; o /= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, o));
    for (int i = lane; i < count; i += 32) {
      const float by = exp2f(from[i * next + a.dim] - finite_base(top));
      share[i] = by;
      sum += by * from[i * next + a.dim + 1];
    }
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(kAll, sum, o);
    float by = sum == 0.f ? 0.f : 1.f / sum;
    if (a.sink_logits && sum != 0.f) {
      const float b = a.sink_logits[head] * kLog2e, most = fmaxf(b, top);
      const float mine = exp2f(top - most);
      by = mine / (sum * mine + exp2f(b - most));
    }
    for (int i = lane; i < count; i += 32) share[i] *= by;
    if (lane == 0) a.lse[out] = sum == 0.f ? -INFINITY : top * kLn2 + logf(sum);
  }
  __syncthreads();
  for (int d = threadIdx.x; d < a.dim; d += kThreads) {
    float sum = 0.f;
    for (int i = 0; i < count; ++i) sum += share[i] * from[i * next + d];
    store_any(a.o, out * a.dim + d, a.q_dtype, sum);
  }
}

cudaError_t attend_all(const Decode& a, int processors, void* stream) {
  const int64_t splits = a.capacity * (a.lists > 1 ? 1 : a.kv_heads);
  if (on_tensor_cores(a.q_dtype, a.kv_dtype)) {
    if (a.kv_dtype == kBF16) return attend_tensor<bf16>(a, splits, processors, stream);
    if (a.kv_dtype == kI8) return attend_tensor<int8_t>(a, splits, processors, stream);
    if (a.kv_dtype == kE4M3) return attend_tensor<e4m3>(a, splits, processors, stream);
    return attend_tensor<__half, __half>(a, splits, processors, stream);
  }
  if (a.kv_dtype == kF32) return attend<float>(a, splits, processors, stream);
  if (a.kv_dtype == kBF16) return attend<bf16>(a, splits, processors, stream);
  if (a.kv_dtype == kI8) return attend<int8_t>(a, splits, processors, stream);
  if (a.kv_dtype == kE4M3) return attend<e4m3>(a, splits, processors, stream);
  return attend<__half>(a, splits, processors, stream);
}

}  // namespace
}  // namespace headrace

// Splits that `rows` rows may need, when no stream's view holds more than `tokens` slots.
HEADRACE_EXPORT int64_t headrace_cuda_decode_capacity(int64_t rows, int64_t tokens, int64_t split,
                                                      int64_t page_size) {
  const int64_t each = headrace::split_count(
      tokens, headrace::split_tokens(tokens < 1 ? 1 : tokens, split, page_size));
  // A shorter view may be cut finer: up to kMaxSplits splits of the least length.
  const int64_t least = headrace::split_tokens(0, split, page_size);
  const int64_t finest = (tokens + least - 1) / least;
  const int64_t most = finest < headrace::kMaxSplits ? finest : headrace::kMaxSplits;
  return rows * (most > each ? most : each);
}

// Splits of rows that read the same keys which one product takes.
HEADRACE_EXPORT int32_t headrace_cuda_decode_fit(int32_t group, int32_t q_dtype, int32_t kv_dtype) {
  const bool packed = headrace::on_tensor_cores(q_dtype, kv_dtype) && group <= headrace::kTileRows;
  return packed ? headrace::kTileRows / group : 1;
}

HEADRACE_EXPORT int64_t headrace_cuda_decode_bytes() { return sizeof(headrace::Decode); }
HEADRACE_EXPORT int64_t headrace_cuda_split_bytes() { return sizeof(headrace::Split); }

// Launches on `stream` of the current device; gives a cudaError_t. Allocates nothing, syncs
// nothing.
HEADRACE_EXPORT int headrace_cuda_paged_attention(const headrace::Decode* a, void* stream) {
  int device = 0, processors = 1;
  cudaError_t error = cudaGetDevice(&device);
  if (!error) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error) return error;
  error = headrace::launch(headrace::plan_kernel, 1, headrace::kPlanThreads, stream, *a);
  if (!error && a->packs) {
    const int64_t each = a->capacity / (int64_t{a->rows} * a->lists);
    const int64_t blocks = each < headrace::kMaxSplits ? each : headrace::kMaxSplits;
    error = headrace::launch(headrace::pack_kernel, blocks, headrace::kPackThreads, stream, *a);
  }
  if (!error) error = headrace::attend_all(*a, processors, stream);
  if (error) return error;
  const int64_t outputs = static_cast<int64_t>(a->rows) * a->q_heads;
  return headrace::launch(headrace::join_kernel, outputs, headrace::kThreads, stream, *a);
}

HEADRACE_EXPORT const char* headrace_cuda_error(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}
