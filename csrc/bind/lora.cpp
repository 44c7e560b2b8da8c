// SPDX-License-Identifier: Apache-2.0
#include "lora.h"

#include <algorithm>

#include "bind/call.h"

namespace headrace::bind {

namespace {

// What the ops share: rows, what they are added to, and the adapters' own.
template <class In>
void take_rows(const In& in, const char* op, LoraArgs& args, LoraBatch& batch) {
  args.x = in.x;
  args.y = in.y.template as<void>();
  args.a = in.a;
  args.b = in.b;
  args.depth = in.x.size(1);
  args.outputs = in.y.size(1);
  args.x_row = in.x.stride(0);
  args.y_row = in.y.stride(0);
  args.x_dtype = in.x.dtype;
  args.pool_dtype = in.a.dtype == kUint8 ? int{headrace::kPoolI4} : in.a.dtype;
  args.slices = args.a_group = args.b_group = 1;
  batch.slots = in.slots.template as<const std::int32_t>();
  batch.scale = in.scale.template as<const float>();
  batch.ranks = in.ranks.template as<const std::int32_t>();
  batch.tokens = in.x.size(0);
  batch.slots_count = in.scale.size(0);
  batch.width = 1;
  batch.op = op;
}

namespace stacked {  // in the orientation in which adapters were trained
HEADRACE_IN(x, a, b, slots, scale, y, ranks);

bool serves(const In&, std::int64_t*) { return true; }

void run(const In& in, int threads) {
  LoraArgs args{};
  LoraBatch batch{};
  take_rows(in, "lora", args, batch);
  const std::int64_t rank = in.a.size(1);
  args.a_row = args.depth;
  args.b_ranks = std::max<std::int64_t>(rank, 1);
  args.b_slot = in.b.stride(0);
  args.b_col = in.b.stride(1);
  args.b_rank = in.b.stride(2);
  batch.pool_rows = batch.slots_count * rank;
  batch.stack_rank = rank;
  headrace::lora(args, batch, threads);
}
}  // namespace stacked

namespace pooled {
HEADRACE_IN(x, a, b, rows, row_indptr, slots, scale, y, weights, ranks, slice_ends, a_scale,
            b_scale, bias, gain, base_bias, epilogue, order, tiles);

constexpr std::int64_t kMostAdapters = 4;  // of one row

// Whether rows hold so many weights, with scales where these are codes.
bool weights(const Given& pool, int axis, const Given& scales, std::int64_t wanted) {
  const bool pairs = pool.dtype == kUint8, codes = pairs || pool.dtype == headrace::kI8;
  const std::int64_t whole = pool.size(axis) * (pairs ? 2 : 1);
  if (whole != wanted || codes != scales.there) return false;
  if (!codes) return true;
  const std::int64_t groups = scales.size(axis);
  return groups > 0 && whole % groups == 0 && whole / groups % (pairs ? 32 : 1) == 0;
}

bool serves(const In& in, std::int64_t*) {
  const std::int64_t width = in.slots.size(1);
  return in.b.dtype == in.a.dtype && width >= 1 && width <= kMostAdapters &&
         weights(in.a, 2, in.a_scale, in.x.size(1)) && weights(in.b, 1, in.b_scale, in.y.size(1)) &&
         (in.a.size(1) == 1 || in.slice_ends.there) &&
         (in.epilogue.there || !(in.bias.there || in.gain.there)) &&
         in.order.there == in.tiles.there;
}

void run(const In& in, int threads) {
  LoraArgs args{};
  LoraBatch batch{};
  take_rows(in, "lora_rows", args, batch);
  args.a_scale = in.a_scale.as<const float>();
  args.b_scale = in.b_scale.as<const float>();
  args.bias = in.bias.as<const float>();
  args.gain = in.gain.as<const float>();
  args.base_bias = in.base_bias.as<const float>();
  args.a_row = in.a.stride(0);
  args.a_slice = in.a.stride(1);
  args.b_ranks = args.b_col = 1;
  args.b_slot = in.b.stride(0);
  args.slices = static_cast<int>(in.a.size(1));
  if (in.a_scale.there) args.a_group = static_cast<int>(args.depth / in.a_scale.size(2));
  if (in.b_scale.there) args.b_group = static_cast<int>(args.outputs / in.b_scale.size(1));
  batch.weights = in.weights.as<const float>();
  batch.rows = in.rows.as<const std::int32_t>();
  batch.row_indptr = in.row_indptr.as<const std::int32_t>();
  batch.slice_ends = in.slice_ends.as<const std::int32_t>();
  batch.epilogue = in.epilogue.as<const std::int32_t>();
  batch.pool_rows = in.a.size(0);
  batch.rows_count = in.rows.size(0);
  batch.biases = in.bias.there ? in.bias.size(0) : 0;
  batch.gains = in.gain.there ? in.gain.size(0) : 0;
  batch.width = static_cast<int>(in.slots.size(1));
  headrace::lora(args, batch, threads);
}
}  // namespace pooled

}  // namespace

void lora_family() {
  bind_op<&stacked::serves, &stacked::run>("lora");
  bind_op<&pooled::serves, &pooled::run>("lora_rows");
}

}  // namespace headrace::bind
