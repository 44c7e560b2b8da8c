// SPDX-License-Identifier: Apache-2.0
// Patches of more than one row of elements.
#pragma once
#include <string.h>

#include <type_traits>

#include "sums.inl.h"

namespace {

template <int M, class X, class R>
void patches_of(const SimilarityArgs& a, std::int64_t frame, std::int64_t y, std::int64_t y_end,
                double* sums) {
  const bool whole = a.x_strides[2] == a.depth && a.ref_strides[2] == a.depth;
  for (; y < y_end; ++y) {
    const X* x = static_cast<const X*>(a.x) + frame * a.x_strides[0] + y * a.x_strides[1];
    const R* r = static_cast<const R*>(a.ref) + frame * a.ref_strides[0] + y * a.ref_strides[1];
    for (std::int64_t p = 0; p < a.out_width; ++p) {
      const std::int64_t w = p * a.patch_width;
      const std::int64_t n = a.width - w < a.patch_width ? a.width - w : a.patch_width;
      if (whole) {
        run<M>(x + w * a.depth, r + w * a.depth, n * a.depth, sums + p * kSums);
        continue;
      }
      for (std::int64_t i = w; i < w + n; ++i) {
        run<M>(x + i * a.x_strides[2], r + i * a.ref_strides[2], a.depth, sums + p * kSums);
      }
    }
  }
}

#ifdef HEADRACE_COLUMNS
constexpr std::int64_t kNarrow = 1024;  // bytes of a row of a patch

// Adds |x - r| of the same n columns of some rows to their sums; first: there are none yet. Two
// rows at a time: a load from memory that shares its low address bits with a store ahead of it
// waits for that store, and so there are to be few.
template <int kRows>
inline void add_rows(const u8* x, std::int64_t x_row, const u8* r, std::int64_t r_row,
                     std::int64_t n, bool first, std::uint16_t* columns) {
  constexpr std::int64_t kAhead = 512;
  const auto add = [&](std::int64_t c, const auto& apart) {
    Columns sum = first ? no_columns() : load_columns(columns + c);
    for (int i = 0; i < kRows; ++i) {
      sum = add_columns(sum, apart(x + i * x_row + c, r + i * r_row + c));
    }
    store_columns(columns + c, sum);
  };
  std::int64_t c = 0;
  for (; c + kColumns <= n; c += kColumns) {
    for (int i = 0; i < kRows && c % 64 == 0; ++i) {
      __builtin_prefetch(x + i * x_row + c + kAhead);
      __builtin_prefetch(r + i * r_row + c + kAhead);
    }
    add(c, [](const u8* u, const u8* v) { return columns_apart(u, v); });
  }
  const int left = static_cast<int>(n - c);
  if (left) add(c, [left](const u8* u, const u8* v) { return columns_apart(u, v, left); });
}

// Bytes of patches that are narrow are added up down their columns, then along them: whole
// registers whatever the width of a patch, and no sum to load and store for each of its rows.
void narrow_patches(const SimilarityArgs& a, std::int64_t frame, std::int64_t y, std::int64_t y_end,
                    double* sums) {
  constexpr std::int64_t kStrip = 6 * kNarrow;
  alignas(64) std::uint16_t columns[kStrip + kColumns];
  const u8* x = static_cast<const u8*>(a.x) + frame * a.x_strides[0];
  const u8* r = static_cast<const u8*>(a.ref) + frame * a.ref_strides[0];
  const std::int64_t own = a.patch_width * a.depth, line = a.width * a.depth;
  const std::int64_t each = kStrip / (own > 0 ? own : 1) * own;
  for (std::int64_t from = 0; from < line; from += each) {
    const std::int64_t wide = line - from < each ? line - from : each;
    for (std::int64_t top = y, end; top < y_end; top = end) {
      end = y_end - top < kColumnRows ? y_end : top + kColumnRows;
      const auto add = [&](auto rows, std::int64_t row) {
        add_rows<decltype(rows)::value>(x + row * a.x_strides[1] + from, a.x_strides[1],
                                        r + row * a.ref_strides[1] + from, a.ref_strides[1], wide,
                                        row == top, columns);
      };
      std::int64_t row = top;
      for (; row + 2 <= end; row += 2) add(std::integral_constant<int, 2>(), row);
      if (row < end) add(std::integral_constant<int, 1>(), row);
      double* to = sums + from / own * kSums;
      along_columns(columns, own, wide, [&](std::int32_t sum) {
        *to += sum;
        to += kSums;
      });
    }
  }
}
#endif

// Bytes of whole patches stay whole numbers until the last row: one addition of a vector each. Its
// store waits for what it adds, and a load from memory that shares its low address bits waits for
// the store; so the next row is fetched ahead, without which this runs at a quarter of the speed.
void byte_patches(const SimilarityArgs& a, std::int64_t frame, std::int64_t y, std::int64_t y_end,
                  double* sums) {
#ifdef HEADRACE_COLUMNS
  if (a.patch_width * a.depth <= kNarrow) return narrow_patches(a, frame, y, y_end, sums);
#endif
  constexpr std::int64_t kStrip = 128;
  std::uint64_t bins[kStrip][kBins];
  const u8* x = static_cast<const u8*>(a.x) + frame * a.x_strides[0];
  const u8* r = static_cast<const u8*>(a.ref) + frame * a.ref_strides[0];
  for (std::int64_t p = 0; p < a.out_width; p += kStrip) {
    const std::int64_t end = a.out_width - p < kStrip ? a.out_width : p + kStrip;
    memset(bins, 0, sizeof bins);
    for (std::int64_t row = y; row < y_end; ++row) {
      for (std::int64_t q = p; q < end; ++q) {
        const std::int64_t w = q * a.patch_width;
        const std::int64_t n = a.width - w < a.patch_width ? a.width - w : a.patch_width;
        const u8* u = x + row * a.x_strides[1] + w * a.depth;
        const u8* v = r + row * a.ref_strides[1] + w * a.depth;
        __builtin_prefetch(u + a.x_strides[1]);
        __builtin_prefetch(v + a.ref_strides[1]);
        add_differences(u, v, n * a.depth, bins[q - p]);
      }
    }
    for (std::int64_t q = p; q < end; ++q) {
      std::uint64_t sum = 0;
      for (int i = 0; i < kBins; ++i) sum += bins[q - p][i];
      sums[q * kSums] = static_cast<double>(sum);
    }
  }
}

}  // namespace
