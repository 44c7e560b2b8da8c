// SPDX-License-Identifier: Apache-2.0
#include "select.h"

#include <algorithm>
#include <cmath>

#include "bind/call.h"
#include "csrc/simd/types.h"

namespace headrace::bind {

namespace {

using headrace::SelectPolicy;

HEADRACE_IN(score, policy, k, budget, threshold, share, mass, counts, buckets, quota, floor, first,
            last, forced, lengths, lowest, capacity, index, count);

constexpr const char* kPolicies[] = {"top_k", "threshold", "share", "mass",
                                     "otsu",  "quota",     "flat"};  // as SelectPolicy

SelectPolicy policy_of(const In& in) {
  return static_cast<SelectPolicy>(which(in.policy, kPolicies));
}

// Of the numbers that a policy goes by.
bool numbers(const In& in) {
  const auto part = [](const Given& x) { return x.number >= 0 && x.number <= 1; };
  bool good = part(in.share) && part(in.mass) && !std::isnan(in.threshold.number);
  for (const Given* x : {&in.k, &in.quota, &in.floor, &in.first, &in.last, &in.capacity}) {
    good &= x->whole >= 0;
  }
  return good;
}

bool serves(const In& in, std::int64_t* told) {
  if (which(in.policy, kPolicies) < 0 || !numbers(in)) return false;
  const SelectPolicy policy = policy_of(in);
  const bool flat = policy == SelectPolicy::kFlat, named = flat || policy == SelectPolicy::kTopK;
  if ((in.k.there && in.budget.there) || (named && !in.k.there && !in.budget.there) ||
      (policy == SelectPolicy::kQuota && !in.buckets.there) ||
      (flat && in.budget.there && in.budget.size(1) != 1)) {
    return false;
  }
  const std::int64_t size = in.score.size(2);
  told[0] = in.capacity.there     ? in.capacity.whole
            : in.k.there && !flat ? std::min(size, in.k.whole)
                                  : size;
  bool good = true;
  for (const Given* x : {&in.budget, &in.counts, &in.buckets, &in.forced, &in.lengths}) {
    good &= spreads(*x, in.score, 2);
  }
  return good;
}

void run(const In& in, int threads) {
  headrace::SelectArgs args{};
  args.score = in.score;
  args.dtype = in.score.dtype;
  args.batch = in.score.size(0);
  args.heads = in.score.size(1);
  args.size = in.score.size(2);
  args.capacity = in.index.size(2);
  args.policy = policy_of(in);
  args.budget = in.budget.as<const std::int32_t>();
  args.counts = in.counts.as<const float>();
  args.buckets = in.buckets.as<const std::int32_t>();
  args.forced = in.forced.as<const std::int32_t>();
  args.lengths = in.lengths.as<const std::int32_t>();
  strides_of(in.score, 2, args.score_strides);
  strides_of(in.budget, 2, args.budget_strides);
  strides_of(in.counts, 2, args.counts_strides);
  strides_of(in.buckets, 2, args.buckets_strides);
  strides_of(in.forced, 4, args.forced_strides);
  strides_of(in.lengths, 2, args.lengths_strides);
  args.ranges = in.forced.there ? in.forced.size(2) : 0;
  args.limit = in.k.there ? in.k.whole : -1;
  args.quota = in.quota.whole;
  args.floor = in.floor.whole;
  args.first = in.first.whole;
  args.last = in.last.whole;
  args.threshold = in.threshold.number;
  args.share = in.share.number;
  args.mass = in.mass.number;
  args.lowest = in.lowest.whole;
  args.index = in.index.as<std::int32_t>();
  args.count = in.count.as<std::int32_t>();
  headrace::select(args, threads);
}

}  // namespace

void select_family() { bind_op<&serves, &run>("select"); }

}  // namespace headrace::bind
