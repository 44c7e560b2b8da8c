// SPDX-License-Identifier: Apache-2.0
// Lists of entries that begin alike: what they share is read once for all of them. Tiles and splits
// stay where each list alone has them, so a row's bits do not tell whether it shared.
#pragma once
#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "kernels/attention/args.h"
#include "kernels/attention/visible.h"

namespace headrace {

// A block of query positions of one stream over one list.
struct PagedBlock {
  std::int64_t list, row, tokens;  // first row in q; visible tokens
  int positions, head;             // the first head of the list
  bool whole;                      // all rows of the stream: its prefix may be shared
  std::int64_t shared = 0;         // tokens of the prefix that somebody else reads for it
};

// Blocks, by number, whose lists begin with the same `entries`, which all of their rows see whole.
struct Prefix {
  std::vector<int> blocks;
  std::int64_t entries = 0, tokens = 0;
};

// Leading entries of a list that queries of orders oldest..newest all see whole.
inline std::int64_t seen_whole(const PagedArgs& args, std::int64_t first, std::int64_t last,
                               std::int64_t oldest, std::int64_t newest) {
  std::int64_t e = first;
  for (; e < last; ++e) {
    const std::int64_t* entry = args.entries + e * args.fields;
    const std::int64_t count = entry[kCount];
    if (oldest - entry[kOrder] < count - 1 || newest - entry[kOrder] >= entry[kReach]) break;
  }
  return e - first;
}

// Groups blocks of one head whose lists share at least kShared tokens in front, as many as `most`
// positions allow.
inline std::vector<Prefix> shared_prefixes(const PagedArgs& args, const std::int32_t* entry_indptr,
                                           const std::vector<PagedBlock>& blocks, int most) {
  constexpr std::int64_t kShared = 64;
  struct Candidate {
    int block;
    const std::int64_t* entries;
    std::int64_t whole;
  };
  std::vector<Candidate> candidates;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const PagedBlock& b = blocks[i];
    if (!b.whole || 2 * b.positions > most) continue;
    const auto [oldest, newest] =
        std::minmax_element(args.q_order + b.row, args.q_order + b.row + b.positions);
    const std::int64_t first = entry_indptr[b.list];
    const std::int64_t whole = seen_whole(args, first, entry_indptr[b.list + 1], *oldest, *newest);
    if (whole > 0) {
      candidates.push_back({static_cast<int>(i), args.entries + first * args.fields, whole});
    }
  }
  const auto key = [&](const Candidate& c) {
    return std::make_tuple(blocks[c.block].head, c.entries[kPage], c.entries[kFirst],
                           c.entries[kCount], c.entries[kOrigin]);
  };
  std::stable_sort(candidates.begin(), candidates.end(),
                   [&](const Candidate& a, const Candidate& b) { return key(a) < key(b); });
  const auto alike = [&](const Candidate& a, const Candidate& b, std::int64_t upto) {
    std::int64_t e = 0;
    const std::size_t bytes = args.fields * sizeof(std::int64_t);
    while (e < upto && e < b.whole &&
           std::memcmp(a.entries + e * args.fields, b.entries + e * args.fields, bytes) == 0) {
      ++e;
    }
    return e;
  };
  const auto tokens_of = [&](const Candidate& c, std::int64_t entries) {
    std::int64_t tokens = 0;
    for (std::int64_t e = 0; e < entries; ++e) tokens += c.entries[e * args.fields + kCount];
    return tokens;
  };
  std::vector<Prefix> found;
  for (std::size_t i = 0; i < candidates.size();) {
    const Candidate& lead = candidates[i];
    Prefix prefix{{lead.block}, lead.whole, tokens_of(lead, lead.whole)};
    int positions = blocks[lead.block].positions;
    std::size_t j = i + 1;
    for (; j < candidates.size(); ++j) {
      const Candidate& next = candidates[j];
      const int more = blocks[next.block].positions;
      if (blocks[next.block].head != blocks[lead.block].head || positions + more > most) break;
      const std::int64_t entries = alike(lead, next, prefix.entries);
      const std::int64_t tokens = tokens_of(lead, entries);
      const std::int64_t size = static_cast<std::int64_t>(prefix.blocks.size());
      // A member may cost the others some of the prefix, not more than it brings.
      if (tokens < kShared || (size > 1 && tokens * size < prefix.tokens * (size - 1))) break;
      prefix.entries = entries;
      prefix.tokens = tokens;
      prefix.blocks.push_back(next.block);
      positions += more;
    }
    if (prefix.blocks.size() > 1) found.push_back(std::move(prefix));
    i = j;
  }
  return found;
}

}  // namespace headrace
