// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/prune/finish.h"
#include "prune.h"

namespace headrace {

namespace {

const PruneKernels& kernels() { return HEADRACE_PICK(prune); }

// Patches of more than one row: a chunk of image rows to an item, added up in their order; by the
// item itself where a band of patches is one chunk, for small patches are many to finish.
void patches(const SimilarityArgs& a, int threads, double work) {
  const PruneKernels& k = kernels();
  const std::int64_t row = std::max<std::int64_t>(a.width * a.depth, 1);
  const std::int64_t item = a.x_dtype == kU8 ? 4 * kPruneWork : kPruneWork;
  const std::int64_t step = std::clamp<std::int64_t>(item / row, 1, a.patch_height);
  const std::int64_t chunks = (a.patch_height + step - 1) / step;
  const std::int64_t bands = a.frames * a.out_height, line = a.out_width * kSums;
  const auto add = [&](std::int64_t band, std::int64_t chunk, double* sums) {
    const std::int64_t top = band % a.out_height * a.patch_height;
    const std::int64_t end = std::min(top + a.patch_height, a.height);
    const std::int64_t y = std::min(top + chunk * step, end);
    k.patches(a, band / a.out_height, y, std::min(y + step, end), sums);
  };
  const auto finish = [&](std::int64_t band, const double* parts) {
    const std::int64_t top = band % a.out_height * a.patch_height;
    const std::int64_t high = std::min(a.patch_height, a.height - top);
    for (std::int64_t p = 0; p < a.out_width; ++p) {
      const std::int64_t wide = std::min(a.patch_width, a.width - p * a.patch_width);
      const double elements = static_cast<double>(high * wide * a.depth);
      float& out = a.out[band * a.out_width + p];
      if (chunks == 1) {
        out = similarity_of(a, parts + p * kSums, elements);
        continue;
      }
      double total[kSums] = {};
      for (std::int64_t c = 0; c < chunks; ++c) {
        for (int j = 0; j < kSums; ++j) total[j] += parts[c * line + p * kSums + j];
      }
      out = similarity_of(a, total, elements);
    }
  };
  const int used = useful_threads(threads, work);
  if (chunks == 1) {
    // Some bands at a time, so that a thread reads on where it was.
    const std::int64_t some = std::clamp<std::int64_t>(bands / (8 * used), 1, 8);
    parallel((bands + some - 1) / some, used, [&](std::int64_t i, int) {
      std::vector<double> sums(static_cast<std::size_t>(line));
      for (std::int64_t band = i * some; band < std::min(bands, (i + 1) * some); ++band) {
        std::fill(sums.begin(), sums.end(), 0.);
        add(band, 0, sums.data());
        finish(band, sums.data());
      }
    });
    return;
  }
  std::vector<double> sums(static_cast<std::size_t>(bands * chunks * line));
  parallel(bands * chunks, used,
           [&](std::int64_t i, int) { add(i / chunks, i % chunks, sums.data() + i * line); });
  parallel(bands, used,
           [&](std::int64_t band, int) { finish(band, sums.data() + band * chunks * line); });
}

}  // namespace

void similarity(const SimilarityArgs& a, int threads) {
  const std::int64_t rows = a.frames * a.height * a.width;
  const std::int64_t around = (2 * a.radius + 1) * (2 * a.radius + 1);
  const double work = static_cast<double>(rows) * (a.depth + 8) * around;
  if (a.patch_height > 1 || a.patch_width > 1) return patches(a, threads, work);
  const PruneKernels& k = kernels();
  const std::int64_t block =
      std::clamp<std::int64_t>(kPruneWork / ((a.depth + 8) * around), 1, 4096);
  parallel((rows + block - 1) / block, useful_threads(threads, work),
           [&](std::int64_t i, int) { k.rows(a, i * block, std::min(rows, (i + 1) * block)); });
}

}  // namespace headrace
