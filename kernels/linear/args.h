// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "csrc/simd/types.h"

namespace headrace {

struct LinearArgs {
  const void* x;       // [T, K], rows of stride x_row
  const void* weight;  // [N, K], rows of stride w_row
  const void* bias;    // [N] or null
  void* y;             // [T, N] contiguous
  std::int64_t tokens, outputs, depth, x_row, w_row;
  int x_dtype, w_dtype;  // bias has the dtype of the weight, y that of x
};

// Bytes of a packed row that a pass over the depth takes. Between two passes the unfinished sums
// wait in scratch, so one pass is better as long as a block of rows fits a second-level cache.
constexpr std::int64_t kLinearDeep = 16384;
// Words of a row, packed for a pass.
inline constexpr std::int64_t linear_words(std::int64_t depth) {
  return depth < kLinearDeep / 4 ? (depth + 31) / 32 * 32 : kLinearDeep / 4;
}

namespace {  // no weak symbols in the kernels

// Many rows lie packed as columns: sixteen in the lanes of a vector, one, two or three vectors of
// them to a block. A leaf is one of the 16 partial sums of a dot product: every 16th element.
struct LinearColumns {
  static constexpr int kTall = 3, kBeside = 8;         // vectors of rows and outputs of a block
  static constexpr int kBlock = kTall * 16 * kBeside;  // its sums
  std::int64_t steps;                                  // elements of a row that belong to a leaf
  std::int64_t vectors, threes;                        // of rows, blocks of three of them
  int leaves;                                          // taken together, a power of two
  std::int64_t chunk;  // steps taken together: all, unless that is too much of a leaf

  explicit LinearColumns(const LinearArgs& a)
      : steps((a.depth + 15) / 16),
        vectors((a.tokens + 15) / 16),
        threes(vectors % 3 == 1 && vectors > 3 ? vectors / 3 - 1 : vectors / 3),
        leaves(1) {
    // Steps of a block of rows that stay in a first-level cache while weights pass.
    constexpr std::int64_t kNear = 128;
    while (leaves < 16 && 2 * leaves * steps <= kNear) leaves *= 2;
    const std::int64_t chunks = (steps + kNear - 1) / kNear;
    chunk = chunks ? (steps + chunks - 1) / chunks : 0;
  }
  std::int64_t blocks() const { return threes + (vectors - kTall * threes + 1) / 2; }
  std::int64_t row(std::int64_t block) const {  // the first of a block
    return 16 * (block < threes ? kTall * block : kTall * threes + 2 * (block - threes));
  }
  int tall(std::int64_t block) const {
    if (block < threes) return kTall;
    return 16 * vectors - row(block) > 16 ? 2 : 1;
  }
  std::int64_t place(std::int64_t block) const { return row(block) * steps * 16; }
  std::int64_t words() const { return 16 * vectors * steps * 16; }

  static std::int64_t groups(std::int64_t outputs) { return (outputs + kBeside - 1) / kBeside; }
  // Where a step of a leaf lies among the packed weights of a strip.
  std::int64_t weights_at(std::int64_t groups, std::int64_t group, int leaf,
                          std::int64_t step) const {
    const std::int64_t before = (leaf / leaves * groups + group) * leaves + leaf % leaves;
    return (before * steps + step) * kBeside;
  }
  // Leaves whose weights stay in a second-level cache. Where these are not all, sums of a few
  // blocks of rows wait for the others.
  int together(std::int64_t outputs) const {
    constexpr std::int64_t kWords = 1 << 17;
    int some = 16;
    while (some > leaves && some * steps * groups(outputs) * kBeside > kWords) some /= 2;
    return some;
  }
  std::int64_t most(std::int64_t outputs) const { return together(outputs) < 16 ? 4 : 1; }
  std::int64_t scratch(std::int64_t outputs) const {
    const std::int64_t all = groups(outputs);
    return all * kBeside * steps * 16 + (all + 1) / 2 * 16 + (4 + 5 * most(outputs) * all) * kBlock;
  }
};

// Many rows of a short depth lie packed by quarters of the 16 partial sums, six rows to a block.
struct LinearQuarters {
  static constexpr int kRows = 6, kOutputs = 16;  // of a block
  static constexpr std::int64_t kDeepest = 512;   // beyond it weights leave the nearest cache
  std::int64_t steps, tokens;                     // elements of a row that belong to a partial sum

  explicit LinearQuarters(const LinearArgs& a) : steps((a.depth + 15) / 16), tokens(a.tokens) {}
  std::int64_t blocks() const { return (tokens + kRows - 1) / kRows; }
  std::int64_t place(std::int64_t block) const { return block * kRows * steps * 16; }
  std::int64_t words() const { return place(blocks()); }
  std::int64_t scratch(std::int64_t) const { return kOutputs * (steps * 16 + 1 + 2 * kRows * 4); }
};

}  // namespace

// How many rows are multiplied that lie packed: blocks [begin, end) of a layout against outputs
// [first, last), and steps [begin, end) of a block to where they lie among all that are packed.
// Null where the level has none.
struct LinearPacked {
  void (*multiply)(const LinearArgs&, const float* packed, std::int64_t begin, std::int64_t end,
                   std::int64_t first, std::int64_t last, float* scratch);
  void (*pack)(const LinearArgs&, std::int64_t block, std::int64_t begin, std::int64_t end,
               float* packed);
};

struct LinearKernels {
  // y[begin:end, first:last]. scratch: linear_words for every row, 12 rows at least, and where the
  // depth is more than that, 16 for every row and output, the outputs rounded up to 8.
  void (*linear)(const LinearArgs&, std::int64_t begin, std::int64_t end, std::int64_t first,
                 std::int64_t last, float* scratch);
  LinearPacked columns, quarters;  // of LinearColumns and of LinearQuarters
  bool pairs;                      // bf16 by bf16 is added up in pairs, which packed rows don't do
};

}  // namespace headrace

HEADRACE_TABLES(LinearKernels, linear)
