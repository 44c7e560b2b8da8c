// SPDX-License-Identifier: Apache-2.0
// The Python binding: integers in (addresses, sizes, strides in elements), nothing out. Shapes and
// dtypes are checked in Python, where the tensors are; what only the values can tell is checked
// here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "attention.h"
#include "build_info.h"
#include "common/isa.h"
#include "hstu.h"
#include "linear.h"
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

void paged_attention(Address q, Strides2 q_strides, Address k, Strides2 k_strides, Address v,
                     Strides2 v_strides, Address entries, Address entry_indptr, Address q_indptr,
                     Address q_pos, Address q_order, Address inv_freq, int half,
                     std::array<std::int64_t, 8> sizes, int q_dtype, int kv_dtype, float scale,
                     float softcap, Address sink_logits, Address o, Address lse, std::int64_t split,
                     int threads) {
  const auto [tokens, q_heads, kv_heads, dim, page_size, pages, streams, n_entries] = sizes;
  headrace::PagedArgs args{};
  args.q = at<const void>(q);
  args.k = at<const void>(k);
  args.v = at<const void>(v);
  args.o = at<void>(o);
  args.lse = at<float>(lse);
  args.entries = at<const std::int64_t>(entries);
  args.q_pos = at<const std::int64_t>(q_pos);
  args.q_order = at<const std::int64_t>(q_order);
  args.inv_freq = at<const double>(inv_freq);
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
  args.half = half;
  args.q_dtype = q_dtype;
  args.kv_dtype = kv_dtype;
  args.softmax = Softmax{scale, softcap, at<const float>(sink_logits)};
  const headrace::PagedBatch batch{at<const std::int32_t>(entry_indptr),
                                   at<const std::int32_t>(q_indptr),
                                   streams,
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
               Address sink_logits, Address o, Address lse, std::int64_t split, int threads) {
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
  py::gil_scoped_release nogil;
  headrace::attention(args, batch, split, threads);
}

void append(Address k, Strides2 k_strides, Address v, Strides2 v_strides, Address k_pages,
            Strides2 k_page_strides, Address v_pages, Strides2 v_page_strides, Address where,
            Address inv_freq, int half, std::array<std::int64_t, 5> sizes, int dtype,
            int page_dtype, int threads) {
  const auto [tokens, kv_heads, dim, page_size, pages] = sizes;
  headrace::AppendArgs args{};
  args.k = at<const void>(k);
  args.v = at<const void>(v);
  args.k_pages = at<void>(k_pages);
  args.v_pages = at<void>(v_pages);
  args.where = at<const std::int64_t>(where);
  args.inv_freq = at<const double>(inv_freq);
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
  args.half = half;
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
  m.def("hstu_attention", &hstu_attention);
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
