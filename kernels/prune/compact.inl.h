// SPDX-License-Identifier: Apache-2.0
// Weighted means of rows: a strip of columns stays in registers while its rows pass by in order.
// And copies of rows.
#pragma once
#include <string.h>

#include <type_traits>

#include "args.h"
#include "csrc/simd/part.h"
#include "csrc/simd/vec.h"

namespace {

template <class T>
void blend_of(const T* x, std::int64_t row_stride, const std::int32_t* rows, const float* weights,
              std::int64_t count, float total, std::int64_t depth, T* out) {
  constexpr int kN = 4;
  const F sum = set1(total);
  std::int64_t d = 0;
  for (; d + kN * kW <= depth; d += kN * kW) {
    F acc[kN];
    for (int n = 0; n < kN; ++n) acc[n] = zero();
    for (std::int64_t i = 0; i < count; ++i) {
      const F w = set1(weights[i]);
      const T* row = x + rows[i] * row_stride + d;
      for (int n = 0; n < kN; ++n) acc[n] = fma(w, load(row + n * kW), acc[n]);
    }
    for (int n = 0; n < kN; ++n) store(out + d + n * kW, div(acc[n], sum));
  }
  for (; d + kW <= depth; d += kW) {
    F acc = zero();
    for (std::int64_t i = 0; i < count; ++i) {
      acc = fma(set1(weights[i]), load(x + rows[i] * row_stride + d), acc);
    }
    store(out + d, div(acc, sum));
  }
  if (d == depth) return;
  const int left = static_cast<int>(depth - d);
  F acc = zero();
  for (std::int64_t i = 0; i < count; ++i) {
    acc = fma(set1(weights[i]), load_part(x + rows[i] * row_stride + d, left), acc);
  }
  store_part(out + d, div(acc, sum), left);
}

void blend(const void* x, std::int64_t row_stride, const std::int32_t* rows, const float* weights,
           std::int64_t count, float total, std::int64_t depth, int dtype, void* out) {
  const auto go = [&](auto* p) {
    using T = std::remove_pointer_t<decltype(p)>;
    blend_of(static_cast<const T*>(x), row_stride, rows, weights, count, total, depth,
             static_cast<T*>(out));
  };
  if (dtype == headrace::kF32) return go(static_cast<float*>(nullptr));
  if (dtype == headrace::kBF16) return go(static_cast<bf16*>(nullptr));
  go(static_cast<fp16*>(nullptr));
}

template <int kBytes>
inline void copy_ends(char* to, const char* from, std::int64_t bytes) {
  memcpy(to, from, kBytes);
  memcpy(to + bytes - kBytes, from + bytes - kBytes, kBytes);
}

// What follows whole pieces overlaps them.
inline void copy_row(char* to, const char* from, std::int64_t bytes) {
  constexpr std::int64_t kPiece = kW * sizeof(float);
  if (bytes >= kPiece) {
    const auto piece = [&](std::int64_t at) {
      store(reinterpret_cast<float*>(to + at), load(reinterpret_cast<const float*>(from + at)));
    };
    for (std::int64_t at = 0; at + kPiece <= bytes; at += kPiece) piece(at);
    if (bytes % kPiece) piece(bytes - kPiece);
    return;
  }
  if (bytes >= 32) {
    copy_ends<16>(to, from, 32);
    copy_ends<16>(to + bytes - 32, from + bytes - 32, 32);
  } else if (bytes >= 16) {
    copy_ends<16>(to, from, bytes);
  } else if (bytes >= 8) {
    copy_ends<8>(to, from, bytes);
  } else if (bytes >= 4) {
    copy_ends<4>(to, from, bytes);
  } else if (bytes >= 2) {
    copy_ends<2>(to, from, bytes);
  } else if (bytes == 1) {
    *to = *from;
  }
}

// Rows whose size is known move without a question about it.
template <int kBytes>
inline void gather_of(char* y, std::int64_t y_step, const char* x, std::int64_t x_step,
                      const std::int32_t* index, std::int64_t n, std::int64_t bytes) {
  constexpr std::int64_t kAhead = 8;  // rows
  if (kBytes) bytes = kBytes;
  for (std::int64_t c = 0; c < n; ++c, y += y_step) {
    if (kBytes >= 64 && c + kAhead < n) {
      for (int b = 0; b < kBytes; b += 64) __builtin_prefetch(x + index[c + kAhead] * x_step + b);
    }
    copy_row(y, x + index[c] * x_step, bytes);
  }
}

void gather(char* y, std::int64_t y_step, const char* x, std::int64_t x_step,
            const std::int32_t* index, std::int64_t n, std::int64_t bytes) {
  const auto go = [&](auto size) {
    gather_of<decltype(size)::value>(y, y_step, x, x_step, index, n, bytes);
  };
  switch (bytes) {
    case 1:
      return go(std::integral_constant<int, 1>());
    case 2:
      return go(std::integral_constant<int, 2>());
    case 4:
      return go(std::integral_constant<int, 4>());
    case 8:
      return go(std::integral_constant<int, 8>());
    case 128:
      return go(std::integral_constant<int, 128>());
    case 256:
      return go(std::integral_constant<int, 256>());
    case 512:
      return go(std::integral_constant<int, 512>());
    default:
      return go(std::integral_constant<int, 0>());
  }
}

}  // namespace
