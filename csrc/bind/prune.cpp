// SPDX-License-Identifier: Apache-2.0
#include "prune.h"

#include <algorithm>
#include <cmath>

#include "bind/call.h"

namespace headrace::bind {

namespace {

namespace comparing {
HEADRACE_IN(x, ref, metric, index, patch_height, patch_width, radius, alpha, out);

constexpr const char* kMetrics[] = {"cos", "dot", "l1", "l2", "gauss"};  // as Metric

// Rows of x along an axis that one patch has; 0 stands for all of them.
std::int64_t patch_of(const In& in, const Given& patch, int axis) {
  const std::int64_t size = in.x.size(axis), wanted = patch.whole ? patch.whole : size;
  return std::max<std::int64_t>(1, std::min(wanted, size));
}

bool serves(const In& in, std::int64_t* told) {
  const bool single = in.patch_height.whole == 1 && in.patch_width.whole == 1;
  const bool around = in.radius.whole > 0, named = in.index.there;
  if ((in.ref.dtype != in.x.dtype && in.ref.dtype != headrace::kF32) ||
      which(in.metric, kMetrics) < 0 || in.patch_height.whole < 0 || in.patch_width.whole < 0 ||
      in.radius.whole < 0 || !finite(in.alpha) || !(in.alpha.number > 0) ||
      ((named || around) && !single) || (named && around)) {
    return false;
  }
  told[0] = blocks_of(in.x.size(1), patch_of(in, in.patch_height, 1));
  told[1] = blocks_of(in.x.size(2), patch_of(in, in.patch_width, 2));
  if (named) return in.ref.size(0) == 1 && in.ref.size(1) == 1 && spreads(in.index, in.x, 3);
  return spreads(in.ref, in.x, 3) &&
         (!around || (in.ref.size(1) == in.x.size(1) && in.ref.size(2) == in.x.size(2)));
}

void run(const In& in, int threads) {
  headrace::SimilarityArgs args{};
  args.x = in.x;
  args.ref = in.ref;
  args.segments = in.index.as<const std::int32_t>();
  args.out = in.out.as<float>();
  strides_of(in.x, 3, args.x_strides);
  strides_of(in.ref, 3, args.ref_strides, !in.index.there);
  strides_of(in.index, 3, args.segment_strides);
  args.frames = in.x.size(0);
  args.height = in.x.size(1);
  args.width = in.x.size(2);
  args.depth = in.x.size(3);
  args.ref_rows = in.ref.size(2);
  args.patch_height = patch_of(in, in.patch_height, 1);
  args.patch_width = patch_of(in, in.patch_width, 2);
  args.out_height = in.out.size(1);
  args.out_width = in.out.size(2);
  args.radius = std::min(in.radius.whole, std::max(args.height, args.width));
  args.alpha = in.alpha.number;
  args.metric = which(in.metric, kMetrics);
  args.x_dtype = in.x.dtype;
  args.ref_dtype = in.ref.dtype;
  headrace::similarity(args, threads);
}
}  // namespace comparing

// Rows of x to rows of y, by an index and its count.
headrace::CompactArgs moves(const Given& x, const Given& y, const Given& index,
                            const Given& count) {
  headrace::CompactArgs args{};
  args.x = x.as<const char>();
  args.y = y.as<char>();
  args.index = index.as<const std::int32_t>();
  args.count = count.as<const std::int32_t>();
  strides_of(x, 3, args.x_strides);
  strides_of(y, 3, args.y_strides);
  strides_of(index, 2, args.index_strides);
  strides_of(count, 2, args.count_strides);
  args.batch = y.size(0);
  args.heads = y.size(1);
  args.depth = y.size(3);
  args.item = kItems[y.dtype];
  args.dtype = y.dtype;
  return args;
}

namespace compacting {
HEADRACE_IN(x, index, count, mask, target, weights, capacity, y, sizes, kept, number);

bool serves(const In& in, std::int64_t* told) {
  if (in.index.there == in.mask.there || (in.mask.there && in.count.there) ||
      (in.index.there && in.capacity.there) || in.capacity.whole < 0 ||
      (in.target.there && in.x.dtype > headrace::kF16)) {
    return false;
  }
  told[0] = in.index.there      ? in.index.size(2)
            : in.capacity.there ? in.capacity.whole
                                : in.x.size(2);
  bool good = true;
  for (const Given* x : {&in.index, &in.count, &in.mask, &in.target, &in.weights}) {
    good &= spreads(*x, in.x, 2);
  }
  return good;
}

void run(const In& in, int threads) {
  headrace::CompactArgs args = moves(in.x, in.y, in.index, in.count);
  args.mask = in.mask.as<const std::uint8_t>();
  args.target = in.target.as<const std::int32_t>();
  args.weights = in.weights.as<const float>();
  args.sizes = in.sizes.as<float>();
  args.kept = in.kept.as<std::int32_t>();
  args.kept_count = in.number.as<std::int32_t>();
  strides_of(in.mask, 2, args.mask_strides);
  strides_of(in.target, 2, args.target_strides);
  strides_of(in.weights, 2, args.weight_strides);
  args.size = in.x.size(2);
  args.capacity = in.y.size(2);
  headrace::compact(args, threads);
}
}  // namespace compacting

namespace inside {
HEADRACE_IN(x, index, count);

bool serves(const In& in, std::int64_t*) {
  return spreads(in.index, in.x, 2) && spreads(in.count, in.x, 2);
}

void run(const In& in, int threads) {
  headrace::CompactArgs args = moves({}, in.x, in.index, in.count);
  args.size = in.x.size(2);
  args.capacity = in.index.size(2);
  headrace::compact_inplace(args, threads);
}
}  // namespace inside

namespace scattering {
HEADRACE_IN(y, x, index, count, aligned);

bool serves(const In& in, std::int64_t*) {
  const Given& rows = in.aligned.whole ? in.y : in.index;
  return in.x.size(2) == rows.size(2) && spreads(in.index, in.y, 2) && spreads(in.count, in.y, 2);
}

void run(const In& in, int threads) {
  headrace::CompactArgs args = moves(in.x, in.y, in.index, in.count);
  args.size = in.y.size(2);
  args.capacity = in.index.size(2);
  args.aligned = in.aligned.whole;
  headrace::scatter_back(args, threads);
}
}  // namespace scattering

}  // namespace

void prune_family() {
  bind_op<&comparing::serves, &comparing::run>("similarity");
  bind_op<&compacting::serves, &compacting::run>("compact");
  bind_op<&inside::serves, &inside::run>("compact_inplace");
  bind_op<&scattering::serves, &scattering::run>("scatter_back");
}

}  // namespace headrace::bind
