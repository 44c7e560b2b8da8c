// SPDX-License-Identifier: Apache-2.0
// A block mask from pooled scores: means of blocks, their products, and for every query block the
// best key blocks, found by bisection over the bits of the scores.
#pragma once
#include <string.h>

#include "args.h"
#include "csrc/simd/vec.h"

namespace {

using headrace::kMaskRows;
using headrace::PooledBlockMaskArgs;

constexpr int kCols = F::registers == 32 ? 4 : 2;
constexpr float kInf = __builtin_inff();

// out[dim] = the mean of rows; every sum adds its rows in order.
template <class T>
inline void mean(const T* x, std::int64_t stride, std::int64_t rows, int dim, float* out) {
  // Sums at a time, since one waits for itself.
  constexpr int kMany = 4;
  const F count = set1(static_cast<float>(rows));
  int d = 0;
  for (; d + kMany * kW <= dim; d += kMany * kW) {
    F sum[kMany];
    for (int n = 0; n < kMany; ++n) sum[n] = zero();
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* row = x + r * stride + d;
      for (int n = 0; n < kMany; ++n) sum[n] = add(sum[n], load(row + n * kW));
    }
    for (int n = 0; n < kMany; ++n) store(out + d + n * kW, div(sum[n], count));
  }
  for (; d < dim; d += kW) {
    F sum = zero();
    for (std::int64_t r = 0; r < rows; ++r) sum = add(sum, load(x + r * stride + d));
    store(out + d, div(sum, count));
  }
}

template <class T>
inline void pool_as(const PooledBlockMaskArgs& a, bool keys, std::int64_t begin, std::int64_t end) {
  const std::int64_t* s = keys ? a.k_strides : a.q_strides;
  const std::int64_t blocks = keys ? a.k_blocks : a.q_blocks, length = keys ? a.k_len : a.q_len;
  const std::int64_t heads = keys ? a.kv_heads : a.q_heads;
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t head = i / blocks, first = i % blocks * a.block;
    const std::int64_t rows = length - first < a.block ? length - first : a.block;
    const T* x = static_cast<const T*>(keys ? a.k : a.q) + head / heads * s[0] +
                 head % heads * s[1] + first * s[2];
    mean(x, s[2], rows, a.dim, (keys ? a.k_mean : a.q_mean) + i * a.dim);
  }
}

void pool(const PooledBlockMaskArgs& a, bool keys, std::int64_t begin, std::int64_t end) {
  if (a.dtype == headrace::kF32) return pool_as<float>(a, keys, begin, end);
  if (a.dtype == headrace::kBF16) return pool_as<bf16>(a, keys, begin, end);
  return pool_as<fp16>(a, keys, begin, end);
}

inline bool finite(float x) { return x - x == 0.f; }

void centre(const PooledBlockMaskArgs& a, std::int64_t head) {
  const float* means = a.k_mean + head * a.k_blocks * a.dim;
  float* columns = a.columns + head * a.dim * a.padded;
  for (int d = 0; d < a.dim; ++d) {
    float sum = 0.f;
    std::int64_t count = 0;
    for (std::int64_t j = 0; j < a.k_blocks; ++j) {
      const float x = means[j * a.dim + d];
      if (!finite(x)) continue;
      sum += x;
      ++count;
    }
    const float middle = count ? sum / static_cast<float>(count) : 0.f;
    for (std::int64_t j = 0; j < a.k_blocks; ++j) {
      columns[d * a.padded + j] = means[j * a.dim + d] - middle;
    }
    for (std::int64_t j = a.k_blocks; j < a.padded; ++j) columns[d * a.padded + j] = 0.f;
  }
}

// s[M][N * kW] = q[M][dim] * columns[dim][N * kW]; every sum runs over the dimensions in order.
template <int M, int N>
inline void scores(const float* q, const float* columns, std::int64_t padded, int dim, float* s) {
  F acc[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) acc[m][n] = zero();
  }
  for (int d = 0; d < dim; ++d) {
    F row[N];
    for (int n = 0; n < N; ++n) row[n] = load(columns + d * padded + n * kW);
    for (int m = 0; m < M; ++m) {
      const F x = set1(q[m * dim + d]);
      for (int n = 0; n < N; ++n) acc[m][n] = fma(x, row[n], acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) store(s + m * padded + n * kW, acc[m][n]);
  }
}

template <int M>
inline void score_rows(const float* q, const float* columns, std::int64_t padded, int dim,
                       std::int64_t upto, float* s) {
  std::int64_t j = 0;
  for (; j + kCols * kW <= upto; j += kCols * kW) {
    scores<M, kCols>(q, columns + j, padded, dim, s + j);
  }
  for (; j < upto; j += kW) scores<M, 1>(q, columns + j, padded, dim, s + j);
}

// Orders as the scores do, from 1 up; NaN as -infinity, both zeros as one.
inline std::uint32_t rank(float score) {
  const float x = score == score ? score + 0.f : -kInf;
  std::uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

inline std::int64_t at_least(const std::uint32_t* keys, std::int64_t n, std::uint32_t bound) {
  std::int32_t count = 0;
  for (std::int64_t j = 0; j < n; ++j) count += keys[j] >= bound;
  return count;
}

struct Blocks {
  std::int64_t lo, hi;
};

// Blocks that hold a key within `reach` of a query in oldest..newest.
inline Blocks near(const PooledBlockMaskArgs& a, std::int64_t oldest, std::int64_t newest,
                   std::int64_t reach) {
  std::int64_t lo = oldest - reach + 1, hi = a.causal ? newest + 1 : newest + reach;
  lo = lo < 0 ? 0 : lo / a.block;
  hi = hi > a.k_len ? a.k_len : hi;
  hi = hi <= 0 || reach == 0 ? 0 : (hi + a.block - 1) / a.block;
  return {lo, lo < hi ? hi : lo};
}

inline void choose_row(const PooledBlockMaskArgs& a, std::int64_t row, const float* s,
                       std::uint32_t* keys, bool* mask) {
  const std::int64_t first = row * a.block, oldest = first + a.k_len - a.q_len;
  const std::int64_t last = first + a.block < a.q_len ? first + a.block : a.q_len;
  const std::int64_t newest = last - 1 + a.k_len - a.q_len;
  const Blocks seen = near(a, oldest, newest, a.window), close = near(a, oldest, newest, a.local);
  std::int64_t pinned = a.sinks < a.k_len ? a.sinks : a.k_len;
  if (a.causal && newest + 1 < pinned) pinned = newest + 1 < 0 ? 0 : newest + 1;
  pinned = (pinned + a.block - 1) / a.block;

  const std::int64_t end = seen.hi > pinned ? seen.hi : pinned;  // nothing behind it can be kept
  std::int64_t candidates = 0, forced = 0;
  for (std::int64_t j = 0; j < end; ++j) {
    const bool window = j >= seen.lo && j < seen.hi;
    const bool must = j < pinned || (window && j >= close.lo && j < close.hi);
    keys[j] = must ? 0xffffffffu : window ? rank(s[j]) : 0u;
    candidates += window || must;
    forced += must;
  }
  std::int64_t wanted = a.blocks;
  if (wanted < 0) {
    wanted = static_cast<std::int64_t>(a.share * static_cast<double>(candidates) + 0.5);
    wanted = wanted < 1 ? 1 : wanted;
  }
  wanted = wanted < forced ? forced : wanted;
  wanted = wanted < candidates ? wanted : candidates;
  memset(mask, 0, a.k_blocks);
  if (wanted == 0) return;
  // The largest bound that `wanted` keys reach, or the first that no other does.
  std::uint32_t bound = 0;
  std::int64_t reach = end;
  for (int bit = 31; bit >= 0 && reach != wanted; --bit) {
    const std::uint32_t next = bound | (std::uint32_t{1} << bit);
    const std::int64_t count = at_least(keys, end, next);
    if (count < wanted) continue;
    bound = next;
    reach = count;
  }
  if (reach == wanted) {
    for (std::int64_t j = 0; j < end; ++j) mask[j] = keys[j] >= bound;
    return;
  }
  std::int64_t ties = wanted - (bound == 0xffffffffu ? 0 : at_least(keys, end, bound + 1));
  for (std::int64_t j = 0; j < end; ++j) {
    mask[j] = keys[j] > bound || (keys[j] == bound && ties-- > 0);
  }
}

void choose(const PooledBlockMaskArgs& a, std::int64_t head, std::int64_t first, int rows,
            float* scratch) {
  const std::int64_t batch = head / a.q_heads;
  const std::int64_t kv = batch * a.kv_heads + head % a.q_heads / (a.q_heads / a.kv_heads);
  const float* columns = a.columns + kv * a.dim * a.padded;
  const float* q = a.q_mean + (head * a.q_blocks + first) * a.dim;
  std::uint32_t* keys = reinterpret_cast<std::uint32_t*>(scratch + kMaskRows * a.padded);
  std::int64_t upto = a.padded;
  if (a.causal) {  // nothing behind the newest query counts
    const std::int64_t newest = (first + rows) * a.block - 1 + a.k_len - a.q_len;
    const std::int64_t blocks = newest < 0 ? 0 : newest / a.block + 1;
    upto = blocks < a.k_blocks ? (blocks + kW - 1) / kW * kW : a.padded;
  }
  int r = 0;
  if (rows == kMaskRows) {
    score_rows<kMaskRows>(q, columns, a.padded, a.dim, upto, scratch);
    r = kMaskRows;
  }
  for (; r < rows; ++r) {
    score_rows<1>(q + r * a.dim, columns, a.padded, a.dim, upto, scratch + r * a.padded);
  }
  for (r = 0; r < rows; ++r) {
    bool* mask = a.mask + (head * a.q_blocks + first + r) * a.k_blocks;
    choose_row(a, first + r, scratch + r * a.padded, keys, mask);
  }
}

}  // namespace

extern "C" const headrace::PooledBlockMaskKernels HEADRACE_JOIN(headrace_pooled_block_mask_,
                                                                HEADRACE_LEVEL) = {pool, centre,
                                                                                   choose};
