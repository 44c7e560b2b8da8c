// SPDX-License-Identifier: Apache-2.0
#include "lora.h"

#include <string>

#include "bind/bind.h"

namespace headrace::bind {

namespace {

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

}  // namespace

void lora_family(py::module_& m) {
  m.def("lora", &lora);
  m.def("lora_rows", &lora);
}

}  // namespace headrace::bind
