// SPDX-License-Identifier: Apache-2.0
// One row of a block mask: which blocks of keys a block of queries may see.
#pragma once
#include "args.h"
#include "visible.h"

namespace headrace {
namespace {

struct BlockRow {
  const std::uint8_t* at;  // null: all blocks
  std::int64_t step;       // elements between the marks of two neighbouring blocks
  std::int64_t size;       // keys of a block

  HEADRACE_HD bool has(std::int64_t block) const { return at[block * step] != 0; }
};

inline BlockRow block_row(const DenseArgs& a, const DenseItem& it) {
  if (!a.block_mask) return {};
  return {a.block_mask + it.batch * a.mask_batch + it.head * a.mask_head +
              it.position / a.block * a.mask_row,
          a.mask_col, a.block};
}

// The first run of keys in [from, hi) whose blocks are all set; {hi, hi} when there is none.
HEADRACE_HD Range next_run(const BlockRow& row, std::int64_t from, std::int64_t hi) {
  if (from >= hi || !row.at) return {from < hi ? from : hi, hi};
  std::int64_t block = from / row.size;
  while (block * row.size < hi && !row.has(block)) ++block;
  if (block * row.size >= hi) return {hi, hi};
  const std::int64_t lo = block * row.size > from ? block * row.size : from;
  while (block * row.size < hi && row.has(block)) ++block;
  return {lo, block * row.size < hi ? block * row.size : hi};
}

// Keys of [lo, hi) in blocks that are set.
HEADRACE_HD std::int64_t keys_in_blocks(const BlockRow& row, std::int64_t lo, std::int64_t hi) {
  std::int64_t keys = 0;
  for (Range run = next_run(row, lo, hi); run.lo < hi; run = next_run(row, run.hi, hi)) {
    keys += run.hi - run.lo;
  }
  return keys;
}

}  // namespace
}  // namespace headrace
