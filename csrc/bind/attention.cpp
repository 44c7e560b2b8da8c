// SPDX-License-Identifier: Apache-2.0
#include "attention.h"

#include <algorithm>
#include <utility>

#include "bind/pages.h"

namespace headrace::bind {

namespace {

namespace paged {
HEADRACE_IN(q, k_pages, v_pages, entries, entry_indptr, q_indptr, q_pos, q_order, inv_freq, scale,
            softcap, sink_logits, freq_axis, rope_gain, k_scale, v_scale, split, max_rows, o, lse);

int axes_of(const In& in) { return in.q_pos.at.dims == 1 ? 1 : 3; }

// kv heads, and lists of entries for each stream: 1, or one for every kv head.
std::pair<std::int64_t, std::int64_t> heads_of(const In& in) {
  const std::int64_t streams = in.q_indptr.size(0) - 1, lists = in.entry_indptr.size(0) - 1;
  const std::int64_t own = in.k_pages.size(1),
                     each = streams ? std::max<std::int64_t>(lists / streams, 1) : 1;
  return own > 1 && each != 1 ? std::pair{own, own} : std::pair{std::max(own, each), each};
}

bool serves(const In& in, std::int64_t*) {
  const auto [kv_heads, each] = heads_of(in);
  const std::int64_t dim = in.q.size(2), slots = in.k_pages.size(3);
  const int axes = axes_of(in);
  return in.entry_indptr.size(0) - 1 == (in.q_indptr.size(0) - 1) * each &&
         sixteens(dim, headrace::kMostDim) && groups(in.q.size(1), kv_heads) &&
         in.k_pages.size(1) > 0 && in.softcap.number >= 0 && finite(in.softcap) &&
         finite(in.scale) && in.split.whole >= 1 && !(in.max_rows.there && in.max_rows.whole < 0) &&
         in.entries.size(1) == (axes == 1 ? 7 : 11) && (axes == 1 || in.q_order.there) &&
         turns(in.inv_freq, in.freq_axis, dim, axes) && scaled(in.k_scale, in.k_pages, slots) &&
         scaled(in.v_scale, in.k_pages, slots) && finite(in.rope_gain) && slots > 0 &&
         slots % 16 == 0;
}

void run(const In& in, int threads) {
  const auto [kv_heads, each] = heads_of(in);
  headrace::PagedArgs args{};
  args.q = in.q;
  args.k = in.k_pages;
  args.v = in.v_pages;
  args.o = in.o.as<void>();
  args.lse = in.lse.as<float>();
  args.entries = in.entries.as<const std::int64_t>();
  args.q_pos = in.q_pos.as<const std::int64_t>();
  args.q_order = (in.q_order.there ? in.q_order : in.q_pos).as<const std::int64_t>();
  args.q_row = in.q.stride(0);
  args.q_head = in.q.stride(1);
  page_strides(in.k_pages, "paged_attention", "k_pages", args.k_page, args.k_head);
  page_strides(in.v_pages, "paged_attention", "v_pages", args.v_page, args.v_head);
  args.k_scale = scales_of(in.k_scale);
  args.v_scale = scales_of(in.v_scale);
  if (in.k_pages.size(1) < kv_heads) {  // a page holds one head, whichever it is
    args.k_head = args.v_head = args.k_scale.head = args.v_scale.head = 0;
  }
  args.q_heads = static_cast<int>(in.q.size(1));
  args.kv_heads = static_cast<int>(kv_heads);
  args.dim = static_cast<int>(in.q.size(2));
  args.page_size = static_cast<int>(in.k_pages.size(3));
  args.q_dtype = in.q.dtype;
  args.kv_dtype = in.k_pages.dtype;
  args.rope = rope_of(in.inv_freq, in.freq_axis, axes_of(in), in.rope_gain.number);
  args.fields = 5 + 2 * args.rope.axes;
  args.softmax = {scale_of(in.scale, in.q.size(2)), static_cast<float>(in.softcap.number),
                  in.sink_logits.as<const float>()};
  const headrace::PagedBatch batch{in.entry_indptr.as<const std::int32_t>(),
                                   in.q_indptr.as<const std::int32_t>(),
                                   in.q_indptr.size(0) - 1,
                                   in.entry_indptr.size(0) - 1,
                                   in.entries.size(0),
                                   in.q.size(0),
                                   in.k_pages.size(0),
                                   in.split.whole};
  headrace::paged_attention(args, batch, threads);
}
}  // namespace paged

namespace whole {
HEADRACE_IN(q, k, v, window, sinks, sink_logits, causal, scale, softcap, block_mask, block_size,
            split, o, lse);

bool serves(const In& in, std::int64_t*) {
  const std::int64_t block = in.block_size.whole;
  if (!sixteens(in.q.size(3), headrace::kMostDim) || !groups(in.q.size(1), in.k.size(1)) ||
      !(in.softcap.number >= 0) || !finite(in.softcap) || !finite(in.scale) || in.split.whole < 1 ||
      (in.window.there && in.window.whole < 1) || in.sinks.whole < 0 || block < 1) {
    return false;
  }
  const Given& mask = in.block_mask;
  if (!mask.there) return true;
  return (mask.size(0) == 1 || mask.size(0) == in.q.size(0)) &&
         (mask.size(1) == 1 || mask.size(1) == in.q.size(1)) &&
         mask.size(2) == blocks_of(in.q.size(2), block) &&
         mask.size(3) == blocks_of(in.k.size(2), block);
}

void run(const In& in, int threads) {
  headrace::DenseArgs args{};
  args.q = in.q;
  args.k = in.k;
  args.v = in.v;
  args.o = in.o.as<void>();
  args.lse = in.lse.as<float>();
  args.q_batch = in.q.stride(0);
  args.q_head = in.q.stride(1);
  args.q_row = in.q.stride(2);
  args.k_batch = in.k.stride(0);
  args.k_head = in.k.stride(1);
  args.k_row = in.k.stride(2);
  args.v_batch = in.v.stride(0);
  args.v_head = in.v.stride(1);
  args.v_row = in.v.stride(2);
  args.q_len = in.q.size(2);
  args.k_len = in.k.size(2);
  const std::int64_t unlimited = args.q_len + args.k_len;
  args.window = in.window.there ? std::min(in.window.whole, unlimited) : unlimited;
  args.sinks = in.window.there || in.block_mask.there ? in.sinks.whole : 0;
  args.q_heads = static_cast<int>(in.q.size(1));
  args.kv_heads = static_cast<int>(in.k.size(1));
  args.dim = static_cast<int>(in.q.size(3));
  args.dtype = in.q.dtype;
  args.causal = in.causal.whole;
  args.softmax = {scale_of(in.scale, in.q.size(3)), static_cast<float>(in.softcap.number),
                  in.sink_logits.as<const float>()};
  args.block = std::min(in.block_size.whole, std::max<std::int64_t>(1, unlimited));
  if (const Given& mask = in.block_mask; mask.there) {
    args.block_mask = mask.as<const std::uint8_t>();
    args.mask_batch = mask.size(0) > 1 ? mask.stride(0) : 0;
    args.mask_head = mask.size(1) > 1 ? mask.stride(1) : 0;
    args.mask_row = mask.stride(2);
    args.mask_col = mask.stride(3);
  }
  headrace::attention(args, in.q.size(0), in.split.whole, threads);
}
}  // namespace whole

namespace appending {
HEADRACE_IN(k, v, k_pages, v_pages, where, inv_freq, freq_axis, k_scale, v_scale);

Appended of(const In& in) {
  return {in.k,        in.v,         in.k_pages, in.v_pages, in.where,
          in.inv_freq, in.freq_axis, in.k_scale, in.v_scale};
}

bool serves(const In& in, std::int64_t*) { return of(in).serves(); }

void run(const In& in, int threads) {
  headrace::append(of(in).args("append"), in.k.size(0), in.k_pages.size(0), threads);
}
}  // namespace appending

namespace merging {
HEADRACE_IN(o_a, lse_a, o_b, lse_b, o, lse);

bool serves(const In& in, std::int64_t*) { return in.o_a.size(2) % 16 == 0; }

void run(const In& in, int threads) {
  const headrace::MergeArgs args{in.o_a,
                                 in.o_b,
                                 in.lse_a.as<const float>(),
                                 in.lse_b.as<const float>(),
                                 in.o.as<void>(),
                                 in.lse.as<float>(),
                                 static_cast<int>(in.o_a.size(2)),
                                 in.o_a.dtype};
  headrace::merge_states(args, in.o_a.size(0) * in.o_a.size(1), threads);
}
}  // namespace merging

}  // namespace

void attention_family() {
  bind_op<&paged::serves, &paged::run>("paged_attention");
  bind_op<&whole::serves, &whole::run>("attention");
  bind_op<&appending::serves, &appending::run>("append");
  bind_op<&merging::serves, &merging::run>("merge_states");
}

}  // namespace headrace::bind
