// SPDX-License-Identifier: Apache-2.0
// Splits of several rows that read the same keys, put together: a shared prefix is read once for
// as many rows as a product takes, and the packs that read it lie side by side, for the cache.
#pragma once
#include "plan.cuh"

namespace headrace {
namespace {

constexpr int kPackThreads = 512;

// A number that tells what a split reads from most else; never 0. Splits that read the same slots
// of the same pages, with queries turned the same way, are alike, whatever orders and reaches say.
__device__ inline uint64_t digest(const Decode& a, const Split& split) {
  uint64_t sum = static_cast<uint64_t>(split.list) + 1;
  const auto add = [&](int64_t x) {
    sum = (sum ^ static_cast<uint64_t>(x)) * 0x9e3779b97f4a7c15u;
    sum ^= sum >> 32;
  };
  for (int e = split.entry; e < split.end; ++e) {
    const int64_t* entry = a.entries + int64_t{e} * a.fields;
    const Range keys = entry_keys(entry, a.pages, a.page_size, a.q_order[split.row]);
    for (int i = 0; i < a.fields; ++i) {
      if (i != kOrderColumn && i != kReachColumn) add(entry[i]);
    }
    add(keys.lo);
    add(keys.hi);
  }
  return sum | 1;
}

__device__ inline bool alike(const Decode& a, const Split& x, const Split& y) {
  if (x.list != y.list || x.end - x.entry != y.end - y.entry) return false;
  const int64_t x_order = a.q_order[x.row], y_order = a.q_order[y.row];
  for (int e = 0; e < x.end - x.entry; ++e) {
    const int64_t* one = a.entries + int64_t{x.entry + e} * a.fields;
    const int64_t* other = a.entries + int64_t{y.entry + e} * a.fields;
    const Range keys = entry_keys(one, a.pages, a.page_size, x_order);
    const Range others = entry_keys(other, a.pages, a.page_size, y_order);
    bool same = keys.lo == others.lo && keys.hi == others.hi;
    for (int i = 0; i < a.fields; ++i) {
      same = same && (i == kOrderColumn || i == kReachColumn || one[i] == other[i]);
    }
    if (!same) return false;
  }
  return true;
}

// Block n: the n-th splits of all rows and lists. A pack is `fit` numbers of splits, -1 behind the
// last. Rows that begin alike meet here, split by split, until their views part.
__global__ void __launch_bounds__(kPackThreads) pack_kernel(const Decode a) {
  __shared__ uint64_t keys[kPackThreads];
  __shared__ int32_t leads[kPackThreads];   // the first thread whose split is alike; -1: no split
  __shared__ int32_t opened[kPackThreads];  // the first pack of a lead
  __shared__ int32_t ends[kPackThreads / 32];
  const int me = threadIdx.x, lane = me % 32, warp = me / 32, number = blockIdx.x;
  const int total = a.rows * a.lists;
  for (int base = 0; base < total; base += kPackThreads) {
    const int most = total - base < kPackThreads ? total - base : kPackThreads;
    const auto split_of = [&](int i) { return a.starts[base + i] + number; };
    const bool any = me < most && split_of(me) < a.starts[base + me + 1];
    const Split mine = any ? a.splits[split_of(me)] : Split{};
    const uint64_t key = any ? digest(a, mine) : 0;
    keys[me] = key;
    __syncthreads();
    int lead = 0;
    while (keys[lead] != key) ++lead;
    if (lead != me && any && !alike(a, mine, a.splits[split_of(lead)])) lead = me;
    leads[me] = any ? lead : -1;
    __syncthreads();
    int before = 0, members = 0;  // of those alike
    for (int i = 0; i < most; ++i) {
      if (leads[i] != lead) continue;
      before += i < me;
      ++members;
    }
    const int wanted = any && lead == me ? (members + a.fit - 1) / a.fit : 0;
    const int end = static_cast<int>(warp_inclusive(wanted, lane));
    if (lane == 31) ends[warp] = end;
    __syncthreads();
    if (me == 0) {
      int sum = 0;
      for (int w = 0; w < kPackThreads / 32; ++w) {
        const int own = ends[w];
        ends[w] = sum;
        sum += own;
      }
      const int first = atomicAdd(a.packs, sum);
      for (int w = 0; w < kPackThreads / 32; ++w) ends[w] += first;
    }
    __syncthreads();
    opened[me] = ends[warp] + end - wanted;
    __syncthreads();
    if (any) {
      int32_t* to = a.packs + 1 + int64_t{opened[lead]} * a.fit;
      to[before] = split_of(me);
      if (lead == me) {
        for (int i = members; i < wanted * a.fit; ++i) to[i] = -1;
      }
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace headrace
