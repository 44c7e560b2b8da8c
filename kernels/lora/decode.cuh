// SPDX-License-Identifier: Apache-2.0
// What decode.cu is called with, where a row's rank rows lie, and weights out of a pool as fp32.
#pragma once
#include "kernels/common/device.cuh"

namespace headrace {

// What the caller hands over; tensors as pointers, strides in elements. Mirrored in cuda.py.
struct Lora {
  const void* x;
  void* y;
  const void *a, *b;
  const float *a_scale, *b_scale, *bias, *gain, *base_bias;  // null for none
  const int32_t* slots;                                      // [tokens, width]
  const float *weights, *scale;              // [tokens, width] or null, [slots_count]
  const int32_t *rows, *row_indptr, *ranks;  // rows null: a slot's rank rows are stack in a row
  const int32_t *slice_ends, *epilogue;      // null: one slice, no bias or gain
  float* bridge;                             // [tokens, slices, width, most]
  int64_t x_row, y_row, a_row, a_slice, b_slot, b_rank, b_col;
  int64_t pool_rows, rows_count, outputs;
  int32_t tokens, depth, slots_count, slices, width, stack, most, biases, gains;
  int32_t x_dtype, pool_dtype, a_group, b_group, splits;
};

namespace {

struct Pair {  // two 4-bit codes: blocks of 32 in 16 bytes, byte i has element i and i + 16
  uint8_t bits;
};

template <class P>
constexpr bool kCodes = sizeof(P) == 1;

__device__ inline int32_t slot_of(const Lora& a, int64_t token, int w) {
  const int32_t slot = a.slots[token * a.width + w];
  return slot < a.slots_count ? slot : -1;
}
__device__ inline float factor_of(const Lora& a, int64_t token, int w, int32_t slot) {
  const float scale = a.scale[slot];
  return a.weights ? scale * a.weights[token * a.width + w] : scale;
}

struct RankRows {
  int64_t first;
  int32_t count;
};
__device__ inline RankRows rank_rows(const Lora& a, int32_t slot, int slice) {
  RankRows list{int64_t{slot} * a.stack, a.stack};
  if (a.rows) {
    list.first = a.row_indptr[slot];
    list.count = static_cast<int32_t>(a.row_indptr[slot + 1] - list.first);
  }
  if (a.ranks) {
    const int32_t rank = a.ranks[int64_t{slot} * a.slices + slice];
    list.count = rank < list.count ? rank : list.count;
  }
  if (list.count > a.most) list.count = a.most;
  return list;
}
// -1 where the list leads out of the pool.
__device__ inline int64_t row_at(const Lora& a, const RankRows& list, int r) {
  int64_t row = list.first + r;
  if (a.rows) row = row >= 0 && row < a.rows_count ? a.rows[row] : -1;
  return row < a.pool_rows ? row : -1;
}
__device__ inline int64_t bridge_at(const Lora& a, int64_t token, int slice, int w) {
  return ((token * a.slices + slice) * a.width + w) * a.most;
}

template <class T>
__device__ inline void load_8(const T* p, float* out) {
  constexpr int kStep = Vec<T>::size < 8 ? Vec<T>::size : 8;
#pragma unroll
  for (int i = 0; i < 8; i += kStep) widen_all(load_vec<Vec<T, kStep>>(p + i), out + i);
}
__device__ inline void load_8(const void* p, int64_t at, int dtype, float* out) {
  if (dtype == kF32) return load_8(static_cast<const float*>(p) + at, out);
  if (dtype == kBF16) return load_8(static_cast<const bf16*>(p) + at, out);
  load_8(static_cast<const __half*>(p) + at, out);
}
template <class T>
__device__ inline void store_8(T* p, const float* x) {
  constexpr int kStep = Vec<T>::size < 8 ? Vec<T>::size : 8;
#pragma unroll
  for (int i = 0; i < 8; i += kStep) {
    Vec<T, kStep> word;
#pragma unroll
    for (int j = 0; j < kStep; ++j) word.at[j] = narrow<T>(x[i + j]);
    *reinterpret_cast<Vec<T, kStep>*>(p + i) = word;
  }
}
__device__ inline void store_8(void* p, int64_t at, int dtype, const float* x) {
  if (dtype == kF32) return store_8(static_cast<float*>(p) + at, x);
  if (dtype == kBF16) return store_8(static_cast<bf16*>(p) + at, x);
  store_8(static_cast<__half*>(p) + at, x);
}

// Eight consecutive weights, `at` a multiple of 8, all of one group.
template <class T>
__device__ inline void weights_8(const T* row, const float*, int, int64_t at, float* out) {
  load_8(row + at, out);
}
__device__ inline void weights_8(const int8_t* row, const float* scales, int group, int64_t at,
                                 float* out) {
  widen_all(load_vec<Vec<int8_t, 8>>(row + at), out);
  const float scale = scales[static_cast<int32_t>(at) / group];
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] *= scale;
}
__device__ inline void weights_8(const Pair* row, const float* scales, int group, int64_t at,
                                 float* out) {
  uint32_t words[2];
  const int where = static_cast<int>(at);
  const Vec<Pair, 8> pairs = load_vec<Vec<Pair, 8>>(row + where / 32 * 16 + where % 16);
  memcpy(words, &pairs, 8);
  const int shift = where % 32 / 16 * 4;
  const float scale = scales[where / group];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // The code as the last bits of 2^23: sums are faster than conversions.
    const uint32_t code = (words[i / 4] >> (8 * (i % 4) + shift)) & 15u;
    out[i] = (__uint_as_float(0x4b000000u | code) - 8388616.f) * scale;
  }
}

template <class T>
__device__ inline float weight_at(const T* row, const float*, int, int64_t at) {
  return widen(row[at]);
}
__device__ inline float weight_at(const int8_t* row, const float* scales, int group, int64_t at) {
  return static_cast<float>(row[at]) * scales[static_cast<int32_t>(at) / group];
}
__device__ inline float weight_at(const Pair* row, const float* scales, int group, int64_t at) {
  const int pair = row[at / 32 * 16 + at % 16].bits;
  return static_cast<float>((at % 32 < 16 ? pair & 15 : pair >> 4) - 8) *
         scales[static_cast<int32_t>(at) / group];
}

}  // namespace
}  // namespace headrace
