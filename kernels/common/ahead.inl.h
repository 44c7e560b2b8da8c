// SPDX-License-Identifier: Apache-2.0
// Rows of one head lie as far apart as a token is wide, too far for a processor to see them coming:
// they are called for some time before they are read.
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace {

constexpr int kLine = 64;  // bytes that come to a cache at once

// All lines of a row, which may begin and end in the midst of one.
inline void call_for(const void* from, std::int64_t at, std::int64_t dim, int dtype) {
  const std::int64_t size = headrace::dtype_size(dtype);
  const char* row = static_cast<const char*>(from) + at * size;
  for (std::int64_t i = 0; i < dim * size; i += kLine) __builtin_prefetch(row + i);
  __builtin_prefetch(row + dim * size - 1);
}

// Rows that are widened next, called for line by line while the products of the rows before them
// run. A burst of calls would wait for memory itself.
struct Coming {
  const char* at = nullptr;
  std::int64_t step = 0, rows = 0;  // bytes from row to row
  std::int64_t bytes = 0, line = 0;
  void call() {
    if (rows == 0) return;
    __builtin_prefetch(at + line);
    line += kLine;
    if (line < bytes + kLine / 2) return;  // a row may begin in the midst of a line
    line = 0;
    at += step;
    --rows;
  }
};

// Rows [first, first + n) of a head that begins at element `at` of every row.
inline Coming rows_ahead(const void* from, std::int64_t at, std::int64_t row, std::int64_t first,
                         std::int64_t n, std::int64_t dim, int dtype) {
  const std::int64_t size = headrace::dtype_size(dtype);
  return {static_cast<const char*>(from) + (first * row + at) * size, row * size, n, dim * size};
}

}  // namespace
