// SPDX-License-Identifier: Apache-2.0
// Patches of more than one row of elements.
#pragma once
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

// Bytes of whole patches stay whole numbers until the last row, some rows of a patch at a time.
void byte_patches(const SimilarityArgs& a, std::int64_t frame, std::int64_t y, std::int64_t y_end,
                  double* sums) {
  const std::int64_t line = a.width * a.depth, wide = a.patch_width * a.depth;
  if (line == 0) return;
  const std::int64_t bands = (y_end - y) * line / kBand + 1;
  const std::int64_t most = (y_end - y + bands - 1) / bands;
  for (; y < y_end; y += most) {
    const u8* x = static_cast<const u8*>(a.x) + frame * a.x_strides[0] + y * a.x_strides[1];
    const u8* r = static_cast<const u8*>(a.ref) + frame * a.ref_strides[0] + y * a.ref_strides[1];
    const std::int64_t rows = y_end - y < most ? y_end - y : most;
    const Pixels band{x, r, a.x_strides[1], a.ref_strides[1], line, rows};
    for (std::int64_t p = 0, from = 0; p < a.out_width; ++p, from += wide) {
      const std::int64_t n = line - from < wide ? line - from : wide;
      sums[p * kSums] += static_cast<double>(apart(band, from, n));
    }
  }
}

}  // namespace
