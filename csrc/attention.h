// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "kernels/attention/args.h"

namespace headrace {

struct PagedBatch {
  const std::int32_t* entry_indptr;  // [lists + 1], lists of entries: one a stream, or kv_heads
  const std::int32_t* q_indptr;      // [streams + 1]
  std::int64_t streams, lists, entries, tokens, pages;
  std::int64_t split;  // tokens that one split covers
};

// All of these throw std::invalid_argument before anything is written.
void paged_attention(const PagedArgs& args, const PagedBatch& batch, int threads);
void attention(DenseArgs args, std::int64_t batch, std::int64_t split, int threads);
void append(const AppendArgs& args, std::int64_t tokens, std::int64_t pages, int threads);
void merge_states(const MergeArgs& args, std::int64_t rows, int threads);

}  // namespace headrace
