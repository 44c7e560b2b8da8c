// SPDX-License-Identifier: Apache-2.0
#include "attention.h"

#include "bind/pages.h"
#include "bind/plain.h"

namespace headrace::bind {

namespace {

void paged_attention(Address q, Strides2 q_strides, Address k, Strides2 k_strides, Address v,
                     Strides2 v_strides, ScaleArgs k_scale, ScaleArgs v_scale, Address entries,
                     Address entry_indptr, Address q_indptr, Address q_pos, Address q_order,
                     RopeArgs rope, float rope_gain, std::array<std::int64_t, 9> sizes, int q_dtype,
                     int kv_dtype, float scale, float softcap, Address sink_logits, Address o,
                     Address lse, std::int64_t split, int threads) {
  const auto [tokens, q_heads, kv_heads, dim, page_size, pages, streams, lists, n_entries] = sizes;
  headrace::PagedArgs args{};
  args.q = at<const void>(q);
  args.k = at<const void>(k);
  args.v = at<const void>(v);
  args.o = at<void>(o);
  args.lse = at<float>(lse);
  args.entries = at<const std::int64_t>(entries);
  args.q_pos = at<const std::int64_t>(q_pos);
  args.q_order = at<const std::int64_t>(q_order);
  args.q_row = q_strides[0];
  args.q_head = q_strides[1];
  args.k_page = k_strides[0];
  args.k_head = k_strides[1];
  args.v_page = v_strides[0];
  args.v_head = v_strides[1];
  args.q_heads = static_cast<int>(q_heads);
  args.kv_heads = static_cast<int>(kv_heads);
  args.dim = static_cast<int>(dim);
  args.page_size = static_cast<int>(page_size);
  args.q_dtype = q_dtype;
  args.kv_dtype = kv_dtype;
  args.rope = rope_of(rope, rope_gain);
  args.fields = 5 + 2 * args.rope.axes;
  args.k_scale = scales_of(k_scale);
  args.v_scale = scales_of(v_scale);
  args.softmax = headrace::Softmax{scale, softcap, at<const float>(sink_logits)};
  const headrace::PagedBatch batch{at<const std::int32_t>(entry_indptr),
                                   at<const std::int32_t>(q_indptr),
                                   streams,
                                   lists,
                                   n_entries,
                                   tokens,
                                   pages,
                                   split};
  py::gil_scoped_release nogil;
  headrace::paged_attention(args, batch, threads);
}

void attention(Address q, Strides3 q_strides, Address k, Strides3 k_strides, Address v,
               Strides3 v_strides, std::array<std::int64_t, 6> sizes, int dtype,
               std::int64_t window, std::int64_t sinks, bool causal, float scale, float softcap,
               Address sink_logits, Address block_mask, std::array<std::int64_t, 4> mask_strides,
               std::int64_t block, Address o, Address lse, std::int64_t split, int threads) {
  const auto [batch, q_heads, kv_heads, q_len, k_len, dim] = sizes;
  headrace::DenseArgs args{};
  args.q = at<const void>(q);
  args.k = at<const void>(k);
  args.v = at<const void>(v);
  args.o = at<void>(o);
  args.lse = at<float>(lse);
  args.q_batch = q_strides[0];
  args.q_head = q_strides[1];
  args.q_row = q_strides[2];
  args.k_batch = k_strides[0];
  args.k_head = k_strides[1];
  args.k_row = k_strides[2];
  args.v_batch = v_strides[0];
  args.v_head = v_strides[1];
  args.v_row = v_strides[2];
  args.q_len = q_len;
  args.k_len = k_len;
  args.window = window;
  args.sinks = sinks;
  args.q_heads = static_cast<int>(q_heads);
  args.kv_heads = static_cast<int>(kv_heads);
  args.dim = static_cast<int>(dim);
  args.dtype = dtype;
  args.causal = causal;
  args.softmax = headrace::Softmax{scale, softcap, at<const float>(sink_logits)};
  args.block_mask = at<const std::uint8_t>(block_mask);
  args.mask_batch = mask_strides[0];
  args.mask_head = mask_strides[1];
  args.mask_row = mask_strides[2];
  args.mask_col = mask_strides[3];
  args.block = block;
  py::gil_scoped_release nogil;
  headrace::attention(args, batch, split, threads);
}

void append(Address k, Strides2 k_strides, Address v, Strides2 v_strides, Address k_pages,
            Strides2 k_page_strides, Address v_pages, Strides2 v_page_strides, ScaleArgs k_scale,
            ScaleArgs v_scale, Address where, RopeArgs rope, std::array<std::int64_t, 5> sizes,
            int dtype, int page_dtype, int threads) {
  const auto [tokens, kv_heads, dim, page_size, pages] = sizes;
  headrace::AppendArgs args{};
  args.k = at<const void>(k);
  args.v = at<const void>(v);
  args.k_pages = at<void>(k_pages);
  args.v_pages = at<void>(v_pages);
  args.where = at<const std::int64_t>(where);
  args.rope = rope_of(rope, 1.f);
  args.k_scale = scales_of(k_scale);
  args.v_scale = scales_of(v_scale);
  args.k_row = k_strides[0];
  args.k_head = k_strides[1];
  args.v_row = v_strides[0];
  args.v_head = v_strides[1];
  args.k_page = k_page_strides[0];
  args.k_page_head = k_page_strides[1];
  args.v_page = v_page_strides[0];
  args.v_page_head = v_page_strides[1];
  args.kv_heads = static_cast<int>(kv_heads);
  args.dim = static_cast<int>(dim);
  args.page_size = static_cast<int>(page_size);
  args.dtype = dtype;
  args.page_dtype = page_dtype;
  py::gil_scoped_release nogil;
  headrace::append(args, tokens, pages, threads);
}

void merge_states(Address o_a, Address lse_a, Address o_b, Address lse_b, Address o, Address lse,
                  std::int64_t rows, int dim, int dtype, int threads) {
  const headrace::MergeArgs args{at<const void>(o_a),
                                 at<const void>(o_b),
                                 at<const float>(lse_a),
                                 at<const float>(lse_b),
                                 at<void>(o),
                                 at<float>(lse),
                                 dim,
                                 dtype};
  py::gil_scoped_release nogil;
  headrace::merge_states(args, rows, threads);
}

// Of plain tensors. False, with nothing done, for anything else.
bool merge_plain(py::handle o_a, py::handle lse_a, py::handle o_b, py::handle lse_b, py::handle o,
                 py::handle lse, bool recorded, int threads) {
  Described states[3], sums[3];
  int dtypes[3], kinds[3];
  const py::handle wide[] = {o_a, o_b, o}, narrow[] = {lse_a, lse_b, lse};
  for (int i = 0; i < 3; ++i) {
    if (!plain(wide[i], 3, recorded, states[i], dtypes[i]) || !dense(states[i]) ||
        !plain(narrow[i], 2, recorded, sums[i], kinds[i]) || !dense(sums[i]) ||
        kinds[i] != headrace::kF32 || dtypes[i] != dtypes[0] || dtypes[i] > headrace::kF16 ||
        !std::equal(states[i].shape, states[i].shape + 3, states[0].shape) ||
        !std::equal(sums[i].shape, sums[i].shape + 2, states[0].shape)) {
      return false;
    }
  }
  if (states[0].shape[2] % 16 != 0) return false;
  const headrace::MergeArgs args{states[0].data,
                                 states[1].data,
                                 static_cast<const float*>(sums[0].data),
                                 static_cast<const float*>(sums[1].data),
                                 states[2].data,
                                 static_cast<float*>(sums[2].data),
                                 static_cast<int>(states[0].shape[2]),
                                 dtypes[0]};
  py::gil_scoped_release nogil;
  headrace::merge_states(args, states[0].shape[0] * states[0].shape[1], threads);
  return true;
}

}  // namespace

void attention_family(py::module_& m) {
  m.def("paged_attention", &paged_attention);
  m.def("attention", &attention);
  m.def("append", &append);
  m.def("merge_states", &merge_states);
  m.def("merge_plain", &merge_plain);
}

}  // namespace headrace::bind
