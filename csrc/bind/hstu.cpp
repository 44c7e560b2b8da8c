// SPDX-License-Identifier: Apache-2.0
#include "hstu.h"

#include "bind/bind.h"

namespace headrace::bind {

namespace {

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

void hstu_family(py::module_& m) { m.def("hstu_attention", &hstu_attention); }

}  // namespace headrace::bind
