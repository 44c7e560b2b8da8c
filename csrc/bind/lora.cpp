// SPDX-License-Identifier: Apache-2.0
#include "lora.h"

#include <string>
#include <utility>

#include "bind/plain.h"

namespace headrace::bind {

namespace {

// A call that waits for rows. pointers: x, y, a, b, a_scale, b_scale, bias, gain, base_bias, slots,
// weights, scale, rows, row_indptr, ranks, slice_ends, epilogue. sizes: tokens, depth, outputs,
// slots, pool rows, rows listed, slices, adapters a row, rank of the stack, biases, gains. strides:
// x, y, A (row, slice), B (ranks a slot, slot, rank, column). dtypes: x, pool. groups: A, B.
class LoraCall {
 public:
  LoraCall(std::string op, const std::array<Address, 17>& pointers,
           const std::array<std::int64_t, 11>& sizes, const std::array<std::int64_t, 8>& strides,
           std::array<int, 2> dtypes, std::array<int, 2> groups)
      : op_(std::move(op)) {
    args_.x = at<const void>(pointers[0]);
    args_.y = at<void>(pointers[1]);
    args_.a = at<const void>(pointers[2]);
    args_.b = at<const void>(pointers[3]);
    args_.a_scale = at<const float>(pointers[4]);
    args_.b_scale = at<const float>(pointers[5]);
    args_.bias = at<const float>(pointers[6]);
    args_.gain = at<const float>(pointers[7]);
    args_.base_bias = at<const float>(pointers[8]);
    batch_.slots = at<const std::int32_t>(pointers[9]);
    batch_.weights = at<const float>(pointers[10]);
    batch_.scale = at<const float>(pointers[11]);
    batch_.rows = at<const std::int32_t>(pointers[12]);
    batch_.row_indptr = at<const std::int32_t>(pointers[13]);
    batch_.ranks = at<const std::int32_t>(pointers[14]);
    batch_.slice_ends = at<const std::int32_t>(pointers[15]);
    batch_.epilogue = at<const std::int32_t>(pointers[16]);
    batch_.tokens = sizes[0];
    args_.depth = sizes[1];
    args_.outputs = sizes[2];
    batch_.slots_count = sizes[3];
    batch_.pool_rows = sizes[4];
    batch_.rows_count = sizes[5];
    args_.slices = static_cast<int>(sizes[6]);
    batch_.width = static_cast<int>(sizes[7]);
    batch_.stack_rank = sizes[8];
    batch_.biases = sizes[9];
    batch_.gains = sizes[10];
    args_.x_row = strides[0];
    args_.y_row = strides[1];
    args_.a_row = strides[2];
    args_.a_slice = strides[3];
    args_.b_ranks = strides[4];
    args_.b_slot = strides[5];
    args_.b_rank = strides[6];
    args_.b_col = strides[7];
    args_.x_dtype = dtypes[0];
    args_.pool_dtype = dtypes[1];
    args_.a_group = groups[0];
    args_.b_group = groups[1];
  }

  void run(int threads) const {
    LoraBatch batch = batch_;
    batch.op = op_.c_str();
    py::gil_scoped_release nogil;
    headrace::lora(args_, batch, threads);
  }

  // Of other rows: x and y with the strides of their rows, slots, weights or 0.
  void run_on(Address x, Address y, Address slots, Address weights, std::int64_t tokens,
              std::int64_t x_row, std::int64_t y_row, int threads) const {
    LoraCall call = *this;
    call.args_.x = at<const void>(x);
    call.args_.y = at<void>(y);
    call.args_.x_row = x_row;
    call.args_.y_row = y_row;
    call.batch_.slots = at<const std::int32_t>(slots);
    call.batch_.weights = at<const float>(weights);
    call.batch_.tokens = tokens;
    call.run(threads);
  }

 private:
  std::string op_;
  LoraArgs args_{};
  LoraBatch batch_{};
};

void lora(const std::string& op, const std::array<Address, 17>& pointers,
          const std::array<std::int64_t, 11>& sizes, const std::array<std::int64_t, 8>& strides,
          std::array<int, 2> dtypes, std::array<int, 2> groups, int threads) {
  LoraCall(op, pointers, sizes, strides, dtypes, groups).run(threads);
}

// Of plain tensors, adapters stacked in the orientation in which they were trained. False, with
// nothing done, for anything else.
bool lora_plain(py::handle x, py::handle a, py::handle b, py::handle slots, py::handle scale,
                py::handle y, bool recorded, int threads) {
  Described rows, down, up, own, factors, out;
  int dtype, pool, other, index, kind, result;
  if (!plain(x, 2, recorded, rows, dtype) || !plain(y, 2, recorded, out, result) ||
      !plain(a, 3, recorded, down, pool) || !plain(b, 3, recorded, up, other) ||
      !plain(slots, 1, recorded, own, index) || !plain(scale, 1, recorded, factors, kind) ||
      dtype > headrace::kF16 || result != dtype || pool > headrace::kF16 || other != pool ||
      index != kPlainI32 || kind != headrace::kF32 || !dense(down)) {
    return false;
  }
  const std::int64_t tokens = rows.shape[0], depth = rows.shape[1], outputs = up.shape[1];
  const std::int64_t adapters = down.shape[0], rank = down.shape[1];
  if (down.shape[2] != depth || up.shape[0] != adapters || up.shape[2] != rank ||
      own.shape[0] != tokens || factors.shape[0] != adapters || out.shape[0] != tokens ||
      out.shape[1] != outputs) {
    return false;
  }
  LoraArgs args{};
  LoraBatch batch{};
  args.x = rows.data;
  args.y = out.data;
  args.a = down.data;
  args.b = up.data;
  args.depth = depth;
  args.outputs = outputs;
  args.x_row = rows.strides[0];
  args.y_row = out.strides[0];
  args.a_row = depth;
  args.b_ranks = rank;
  args.b_slot = up.strides[0];
  args.b_col = up.strides[1];
  args.b_rank = 1;
  args.slices = args.a_group = args.b_group = 1;
  args.x_dtype = dtype;
  args.pool_dtype = pool;
  batch.slots = static_cast<const std::int32_t*>(own.data);
  batch.scale = static_cast<const float*>(factors.data);
  batch.tokens = tokens;
  batch.slots_count = adapters;
  batch.pool_rows = adapters * rank;
  batch.stack_rank = rank;
  batch.width = 1;
  batch.op = "lora";
  py::gil_scoped_release nogil;
  headrace::lora(args, batch, threads);
  return true;
}

}  // namespace

void lora_family(py::module_& m) {
  using Sizes = std::array<std::int64_t, 11>;
  py::class_<LoraCall>(m, "LoraCall")
      .def(py::init<std::string, const std::array<Address, 17>&, const Sizes&,
                    const std::array<std::int64_t, 8>&, std::array<int, 2>, std::array<int, 2>>())
      .def("run", &LoraCall::run_on);
  m.def("lora", &lora);
  m.def("lora_plain", &lora_plain);
  m.def("lora_rows", &lora);
}

}  // namespace headrace::bind
