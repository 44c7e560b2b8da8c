// SPDX-License-Identifier: Apache-2.0
// The Python binding: integers in (addresses, sizes, strides in elements), nothing out. Shapes and
// dtypes are checked in Python, where the tensors are; what only the values can tell is checked
// here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "attention.h"
#include "build_info.h"
#include "causal_conv.h"
#include "common/isa.h"
#include "delta.h"
#include "gated_delta_rule.h"
#include "hstu.h"
#include "linear.h"
#include "linear_attention.h"
#include "lora.h"
#include "pooled_block_mask.h"
#include "probe.h"

namespace py = pybind11;
using headrace::Softmax;

namespace {

using Address = std::uintptr_t;
using Strides2 = std::array<std::int64_t, 2>;
using Strides3 = std::array<std::int64_t, 3>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// inv_freq, freq_axis, how many frequencies, how many axes.
using RopeArgs = std::tuple<Address, Address, int, int>;
// Scales of quantised pages: address (0: none), strides of page, head and slot.
using ScaleArgs = std::tuple<Address, std::int64_t, std::int64_t, int>;

headrace::Rope rope_of(RopeArgs rope, float gain) {
  const auto [inv_freq, freq_axis, half, axes] = rope;
  return {at<const double>(inv_freq), at<const std::int32_t>(freq_axis), half, axes, gain};
}

headrace::Scales scales_of(ScaleArgs scale) {
  const auto [address, page, head, slot] = scale;
  return {at<float>(address), page, head, slot};
}

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
  args.softmax = Softmax{scale, softcap, at<const float>(sink_logits)};
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
  args.softmax = Softmax{scale, softcap, at<const float>(sink_logits)};
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

void linear(Address x, std::int64_t x_row, Address weight, std::int64_t w_row, Address bias,
            Address y, Strides3 sizes, int x_dtype, int w_dtype, int threads) {
  const headrace::LinearArgs args{at<const void>(x),
                                  at<const void>(weight),
                                  at<const void>(bias),
                                  at<void>(y),
                                  sizes[0],
                                  sizes[1],
                                  sizes[2],
                                  x_row,
                                  w_row,
                                  x_dtype,
                                  w_dtype};
  py::gil_scoped_release nogil;
  headrace::linear(args, threads);
}

// pointers: x, y, a, b, a_scale, b_scale, bias, gain, base_bias, slots, weights, scale, rows,
// row_indptr, ranks, slice_ends, epilogue. sizes: tokens, depth, outputs, slots, pool rows, rows
// listed, slices, adapters a row, rank of the stack, biases, gains. strides: x, y, A (row, slice),
// B (ranks a slot, slot, rank, column). dtypes: x, pool. groups: A, B.
void lora(const std::string& op, const std::array<Address, 17>& pointers,
          const std::array<std::int64_t, 11>& sizes, const std::array<std::int64_t, 8>& strides,
          std::array<int, 2> dtypes, std::array<int, 2> groups, int threads) {
  headrace::LoraArgs args{};
  headrace::LoraBatch batch{};
  args.x = at<const void>(pointers[0]);
  args.y = at<void>(pointers[1]);
  args.a = at<const void>(pointers[2]);
  args.b = at<const void>(pointers[3]);
  args.a_scale = at<const float>(pointers[4]);
  args.b_scale = at<const float>(pointers[5]);
  args.bias = at<const float>(pointers[6]);
  args.gain = at<const float>(pointers[7]);
  args.base_bias = at<const float>(pointers[8]);
  batch.slots = at<const std::int32_t>(pointers[9]);
  batch.weights = at<const float>(pointers[10]);
  batch.scale = at<const float>(pointers[11]);
  batch.rows = at<const std::int32_t>(pointers[12]);
  batch.row_indptr = at<const std::int32_t>(pointers[13]);
  batch.ranks = at<const std::int32_t>(pointers[14]);
  batch.slice_ends = at<const std::int32_t>(pointers[15]);
  batch.epilogue = at<const std::int32_t>(pointers[16]);
  batch.tokens = sizes[0];
  args.depth = sizes[1];
  args.outputs = sizes[2];
  batch.slots_count = sizes[3];
  batch.pool_rows = sizes[4];
  batch.rows_count = sizes[5];
  args.slices = static_cast<int>(sizes[6]);
  batch.width = static_cast<int>(sizes[7]);
  batch.stack_rank = sizes[8];
  batch.biases = sizes[9];
  batch.gains = sizes[10];
  args.x_row = strides[0];
  args.y_row = strides[1];
  args.a_row = strides[2];
  args.a_slice = strides[3];
  args.b_ranks = strides[4];
  args.b_slot = strides[5];
  args.b_rank = strides[6];
  args.b_col = strides[7];
  args.x_dtype = dtypes[0];
  args.pool_dtype = dtypes[1];
  args.a_group = groups[0];
  args.b_group = groups[1];
  batch.op = op.c_str();
  py::gil_scoped_release nogil;
  headrace::lora(args, batch, threads);
}

void pooled_block_mask(Address q, Strides3 q_strides, Address k, Strides3 k_strides,
                       std::array<std::int64_t, 6> sizes, int dtype, double share,
                       std::int64_t blocks, std::int64_t block_size, std::int64_t window,
                       std::int64_t sinks, std::int64_t local, bool causal, Address mask,
                       int threads) {
  const auto [batch, q_heads, kv_heads, q_len, k_len, dim] = sizes;
  headrace::PooledBlockMaskArgs args{};
  args.q = at<const void>(q);
  args.k = at<const void>(k);
  args.mask = at<bool>(mask);
  std::copy(q_strides.begin(), q_strides.end(), args.q_strides);
  std::copy(k_strides.begin(), k_strides.end(), args.k_strides);
  args.q_len = q_len;
  args.k_len = k_len;
  args.block = block_size;
  args.window = window;
  args.sinks = sinks;
  args.local = local;
  args.blocks = blocks;
  args.share = share;
  args.q_heads = static_cast<int>(q_heads);
  args.kv_heads = static_cast<int>(kv_heads);
  args.dim = static_cast<int>(dim);
  args.dtype = dtype;
  args.causal = causal;
  py::gil_scoped_release nogil;
  headrace::pooled_block_mask(args, batch, threads);
}

void hstu_attention(Address q, Strides2 q_strides, Address k, Strides2 k_strides, Address v,
                    Strides2 v_strides, std::array<Address, 5> tables,
                    std::array<std::int64_t, 6> sizes, int dtype, float alpha, float weight,
                    std::array<std::int64_t, 4> rule, bool causal, Address o, std::int64_t split,
                    int threads) {
  const auto [queries, keys, heads, dim, v_dim, sequences] = sizes;
  headrace::HstuArgs args{};
  args.q = at<const void>(q);
  args.k = at<const void>(k);
  args.v = at<const void>(v);
  args.o = at<void>(o);
  args.attn_scale = at<const float>(tables[4]);
  args.q_row = q_strides[0];
  args.q_head = q_strides[1];
  args.k_row = k_strides[0];
  args.k_head = k_strides[1];
  args.v_row = v_strides[0];
  args.v_head = v_strides[1];
  args.split = split;
  args.heads = static_cast<int>(heads);
  args.dim = static_cast<int>(dim);
  args.v_dim = static_cast<int>(v_dim);
  args.dtype = dtype;
  args.alpha = alpha;
  args.weight = weight;
  headrace::HstuBatch batch{};
  batch.q_indptr = at<const std::int32_t>(tables[0]);
  batch.k_indptr = at<const std::int32_t>(tables[1]);
  batch.num_targets = at<const std::int32_t>(tables[2]);
  batch.k_order = at<const std::int64_t>(tables[3]);
  batch.sequences = sequences;
  batch.queries = queries;
  batch.keys = keys;
  batch.rule.reach = rule[0];
  batch.rule.context = rule[1];
  batch.rule.full = rule[2];
  batch.rule.sinks = rule[3];
  batch.rule.causal = causal;
  py::gil_scoped_release nogil;
  headrace::hstu_attention(args, batch, threads);
}

void causal_conv(const std::array<Address, 7>& at_, const std::array<std::int64_t, 5>& sizes,
                 const std::array<int, 3>& kind, int threads) {
  headrace::CausalConvArgs args{};
  args.x = at<const void>(at_[0]);
  args.weight = at<const float>(at_[1]);
  args.bias = at<const float>(at_[2]);
  args.state = at<void>(at_[3]);
  args.y = at<void>(at_[4]);
  args.indptr = at<const std::int32_t>(at_[5]);
  args.rows = at<const std::int32_t>(at_[6]);
  args.tokens = sizes[0];
  args.channels = sizes[1];
  args.streams = sizes[2];
  args.states = sizes[3];
  args.x_row = sizes[4];
  args.taps = kind[0];
  args.dtype = kind[1];
  args.silu = kind[2];
  py::gil_scoped_release nogil;
  headrace::causal_conv(args, threads);
}

void frame_delta_rule(const std::array<Address, 13>& p, const std::array<std::int64_t, 18>& n,
                      const std::array<int, 2>& kind, double eps, int threads) {
  headrace::FrameDeltaArgs args{};
  args.q = at<const void>(p[0]);
  args.k = at<const void>(p[1]);
  args.v = at<const void>(p[2]);
  args.q_hat = at<const void>(p[3]);
  args.k_hat = at<const void>(p[4]);
  args.beta = at<const float>(p[5]);
  args.log_decay = at<const float>(p[6]);
  args.state = at<float>(p[7]);
  args.norm = at<float>(p[8]);
  args.frames = at<const std::int32_t>(p[9]);
  args.indptr = at<const std::int32_t>(p[10]);
  args.rows = at<const std::int32_t>(p[11]);
  args.o = at<void>(p[12]);
  std::int64_t* sizes[] = {&args.tokens,    &args.heads,       &args.v_heads,   &args.dim,
                           &args.v_dim,     &args.frame_count, &args.streams,   &args.states,
                           &args.q_row,     &args.q_head,      &args.k_row,     &args.k_head,
                           &args.v_row,     &args.v_head,      &args.q_hat_row, &args.q_hat_head,
                           &args.k_hat_row, &args.k_hat_head};
  for (int i = 0; i < 18; ++i) *sizes[i] = n[i];
  args.dtype = kind[0];
  args.update = kind[1];
  args.eps = static_cast<float>(eps);
  py::gil_scoped_release nogil;
  headrace::frame_delta_rule(args, threads);
}

void linear_attention(const std::array<Address, 12>& p, const std::array<std::int64_t, 14>& n,
                      const std::array<int, 3>& kind, const std::array<double, 2>& by,
                      int threads) {
  headrace::LinearAttentionArgs args{};
  args.q = at<const void>(p[0]);
  args.k = at<const void>(p[1]);
  args.v = at<const void>(p[2]);
  args.state = at<float>(p[3]);
  args.norm = at<float>(p[4]);
  args.indptr = at<const std::int32_t>(p[5]);
  args.rows = at<const std::int32_t>(p[6]);
  args.log_decay = at<const float>(p[7]);
  args.inv_freq = at<const double>(p[8]);
  args.offset = at<const std::int64_t>(p[9]);
  args.count = at<const std::int64_t>(p[10]);
  args.o = at<void>(p[11]);
  std::int64_t* sizes[] = {&args.tokens,  &args.heads,  &args.kv_heads, &args.dim,   &args.v_dim,
                           &args.streams, &args.states, &args.half,     &args.q_row, &args.q_head,
                           &args.k_row,   &args.k_head, &args.v_row,    &args.v_head};
  for (int i = 0; i < 14; ++i) *sizes[i] = n[i];
  args.dtype = kind[0];
  args.feature = kind[1];
  args.raw = kind[2];
  args.scale = static_cast<float>(by[0]);
  args.eps = static_cast<float>(by[1]);
  py::gil_scoped_release nogil;
  headrace::linear_attention(args, threads);
}

// pointers: q, k, v, log_decay, beta, o, state, indptr, rows. sizes: tokens, streams, states,
// heads, value heads, K, V. strides: row and head of q, k and v.
void gated_delta_rule(const std::array<Address, 9>& pointers,
                      const std::array<std::int64_t, 7>& sizes,
                      const std::array<std::int64_t, 6>& strides, int dtype, float scale,
                      bool normalize, int threads) {
  headrace::GatedDeltaRuleArgs args{};
  args.q = at<const void>(pointers[0]);
  args.k = at<const void>(pointers[1]);
  args.v = at<const void>(pointers[2]);
  args.log_decay = at<const float>(pointers[3]);
  args.beta = at<const float>(pointers[4]);
  args.o = at<void>(pointers[5]);
  args.state = at<float>(pointers[6]);
  args.indptr = at<const std::int32_t>(pointers[7]);
  args.rows = at<const std::int32_t>(pointers[8]);
  args.heads = static_cast<int>(sizes[3]);
  args.v_heads = static_cast<int>(sizes[4]);
  args.dim = static_cast<int>(sizes[5]);
  args.v_dim = static_cast<int>(sizes[6]);
  args.q_row = strides[0];
  args.q_head = strides[1];
  args.k_row = strides[2];
  args.k_head = strides[3];
  args.v_row = strides[4];
  args.v_head = strides[5];
  args.dtype = dtype;
  args.scale = scale;
  args.normalize = normalize;
  py::gil_scoped_release nogil;
  headrace::gated_delta_rule(args, sizes[1], sizes[0], sizes[2], threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  headrace::active_isa();  // an impossible HEADRACE_ISA fails here, as the ImportError that it is
  m.doc() = "Compiled kernels of headrace; the public functions are in headrace.ops.";
  m.def("available_isas", &headrace::available_isas, "Levels this machine has, slowest first.");
  m.def("active_isa", [] { return std::string(headrace::isa_name(headrace::active_isa())); });
  m.def("force_isa", &headrace::force_isa, py::arg("name"),
        "Run at this level from now on; an empty name restores the default.");
  m.def("build_info", [] {
    return py::dict(py::arg("compiler") = HEADRACE_COMPILER, py::arg("flags") = HEADRACE_FLAGS,
                    py::arg("cuda") = HEADRACE_CUDA_STATE,
#ifdef _OPENMP
                    py::arg("openmp") = _OPENMP
#else
                    py::arg("openmp") = 0
#endif
    );
  });
  m.def("paged_attention", &paged_attention);
  m.def("attention", &attention);
  m.def("append", &append);
  m.def("merge_states", &merge_states);
  m.def("linear", &linear);
  m.def("frame_delta_rule", &frame_delta_rule);
  m.def("gated_delta_rule", &gated_delta_rule);
  m.def("linear_attention", &linear_attention);
  m.def("causal_conv", &causal_conv);
  m.def("hstu_attention", &hstu_attention);
  m.def("lora", &lora);
  m.def("lora_rows", &lora);
  m.def("pooled_block_mask", &pooled_block_mask);
  m.def("multiply_add_rate", &headrace::multiply_add_rate, py::arg("seconds"), py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());
  m.def(
      "read_seconds",
      [](Address data, std::int64_t words, int passes, int threads) {
        return headrace::read_seconds(at<const float>(data), words, passes, threads);
      },
      py::arg("data"), py::arg("words"), py::arg("passes"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}
