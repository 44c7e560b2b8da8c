// SPDX-License-Identifier: Apache-2.0
// merge_states: a warp to a row. Not yet seen running on a GPU.
#include "kernels/common/device.cuh"

namespace headrace {

struct Merge {
  const void *o_a, *o_b;  // [rows, dim] contiguous
  const float *lse_a, *lse_b;
  void* o;
  float* lse;
  int64_t rows;
  int32_t dim, dtype;
};

namespace {

constexpr int kMergeThreads = 256, kMergeRows = kMergeThreads / 32;

// Wide: the rows are 16-byte aligned.
template <class T, bool Wide>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const Merge a) {
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kMergeRows + threadIdx.x / 32;
  if (row >= a.rows) return;
  const float la = a.lse_a[row], lb = a.lse_b[row], top = fmaxf(la, lb);
  const float shift = top == -INFINITY ? 0.f : top;
  float wa = expf(la - shift), wb = expf(lb - shift);
  const float total = wa + wb;
  if (lane == 0) a.lse[row] = total == 0.f ? -INFINITY : shift + logf(total);
  const float share = total == 0.f ? 0.f : 1.f / total;
  // A state of weight 0 may hold anything; it is not read.
  const bool has_a = wa != 0.f, has_b = wb != 0.f;
  wa *= share;
  wb *= share;
  const T* from_a = static_cast<const T*>(a.o_a) + row * a.dim;
  const T* from_b = static_cast<const T*>(a.o_b) + row * a.dim;
  T* to = static_cast<T*>(a.o) + row * a.dim;
  constexpr int kStep = Wide ? Vec<T>::size : 1;
  for (int d = lane * kStep; d < a.dim; d += 32 * kStep) {
    if constexpr (Wide) {
      Vec<T> x{}, y{}, z;
      if (has_a) x = load_vec<Vec<T>>(from_a + d);
      if (has_b) y = load_vec<Vec<T>>(from_b + d);
#pragma unroll
      for (int j = 0; j < kStep; ++j)
        z.at[j] = narrow<T>(widen(x.at[j]) * wa + widen(y.at[j]) * wb);
      *reinterpret_cast<Vec<T>*>(to + d) = z;
    } else {
      const float x = has_a ? widen(from_a[d]) * wa : 0.f;
      to[d] = narrow<T>(has_b ? x + widen(from_b[d]) * wb : x);
    }
  }
}

template <class T>
cudaError_t merge(const Merge& a, void* stream) {
  const int64_t blocks = (a.rows + kMergeRows - 1) / kMergeRows;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(a.o_a) | reinterpret_cast<uintptr_t>(a.o_b) |
                         reinterpret_cast<uintptr_t>(a.o);
  if (bits % 16 == 0) return launch(merge_kernel<T, true>, blocks, kMergeThreads, stream, a);
  return launch(merge_kernel<T, false>, blocks, kMergeThreads, stream, a);
}

}  // namespace
}  // namespace headrace

HEADRACE_EXPORT int64_t headrace_cuda_merge_bytes() { return sizeof(headrace::Merge); }

HEADRACE_EXPORT int headrace_cuda_merge_states(const headrace::Merge* a, void* stream) {
  if (a->dtype == headrace::kF32) return headrace::merge<float>(*a, stream);
  if (a->dtype == headrace::kBF16) return headrace::merge<headrace::bf16>(*a, stream);
  return headrace::merge<__half>(*a, stream);
}
