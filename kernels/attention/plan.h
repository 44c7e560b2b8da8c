// SPDX-License-Identifier: Apache-2.0
// How the visible tokens of one query row are cut into splits. A split is a run of whole entries:
// entry e belongs to split floor(visible tokens before e / tokens), which depends on nothing but
// the row's own view.
#pragma once
#include "visible.h"

namespace headrace {
namespace {

constexpr int kSplitTokens = 256;  // of a split, unless the view is longer than kMaxSplits of them
constexpr int kMaxSplits = 64;
constexpr int kOrderColumn = 5, kReachColumn = 6;  // of an entry

// Keys of an entry (7 int64: page, first, count, origin, cap, order, reach) that a query of order
// `order` sees, counted from the entry's first. An entry that names slots outside the pool is
// empty.
HEADRACE_HD Range entry_keys(const std::int64_t* entry, std::int64_t pages, std::int64_t page_size,
                             std::int64_t order) {
  const std::int64_t page = entry[0], first = entry[1], count = entry[2];
  const bool inside =
      page >= 0 && page < pages && first >= 0 && count > 0 && count <= page_size - first;
  return inside ? visible(order, order, entry[5], entry[6], count) : Range{0, 0};
}

// No less than a page, so that no split but the last can be without an entry. Long views double it,
// so that two that begin alike are cut alike unless one is twice as long.
HEADRACE_HD std::int64_t split_tokens(std::int64_t seen, std::int64_t wanted,
                                      std::int64_t page_size) {
  std::int64_t tokens = wanted < kSplitTokens ? wanted : kSplitTokens;
  if (tokens < page_size) tokens = page_size;
  while (tokens * kMaxSplits < seen) tokens *= 2;
  return tokens;
}

HEADRACE_HD int split_count(std::int64_t seen, std::int64_t tokens) {
  return seen <= tokens ? 1 : static_cast<int>((seen + tokens - 1) / tokens);
}

// The stream that owns a row: the last whose first row is not after it.
HEADRACE_HD int owner(const std::int32_t* indptr, int streams, int row) {
  int below = 0, above = streams;
  while (above - below > 1) {
    const int mid = (below + above) / 2;
    if (indptr[mid] <= row) {
      below = mid;
    } else {
      above = mid;
    }
  }
  return below;
}

}  // namespace
}  // namespace headrace
