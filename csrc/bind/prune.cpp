// SPDX-License-Identifier: Apache-2.0
#include "prune.h"

#include <algorithm>
#include <limits>

#include "bind/plain.h"

namespace headrace::bind {

namespace {

using Sizes4 = std::array<std::int64_t, 4>;

void similarity(Address x, Strides3 x_strides, Address ref, Strides3 ref_strides, Address segments,
                Strides3 segment_strides, Sizes4 sizes, std::int64_t ref_rows, Strides2 patch,
                std::int64_t radius, double alpha, int metric, int x_dtype, int ref_dtype,
                Address out, int threads) {
  headrace::SimilarityArgs args{};
  args.x = at<const void>(x);
  args.ref = at<const void>(ref);
  args.segments = at<const std::int32_t>(segments);
  args.out = at<float>(out);
  std::copy(x_strides.begin(), x_strides.end(), args.x_strides);
  std::copy(ref_strides.begin(), ref_strides.end(), args.ref_strides);
  std::copy(segment_strides.begin(), segment_strides.end(), args.segment_strides);
  args.frames = sizes[0];
  args.height = sizes[1];
  args.width = sizes[2];
  args.depth = sizes[3];
  args.ref_rows = ref_rows;
  args.patch_height = patch[0];
  args.patch_width = patch[1];
  args.out_height = (sizes[1] + patch[0] - 1) / patch[0];
  args.out_width = (sizes[2] + patch[1] - 1) / patch[1];
  args.radius = radius;
  args.alpha = alpha;
  args.metric = metric;
  args.x_dtype = x_dtype;
  args.ref_dtype = ref_dtype;
  py::gil_scoped_release nogil;
  headrace::similarity(args, threads);
}

// The optional arrays come in the order index, count, target, weights, mask. sizes: batch, heads,
// size, capacity, depth. item: bytes of an element.
headrace::CompactArgs compact_args(Address x, Strides3 x_strides, Address y, Strides3 y_strides,
                                   const std::array<Address, 5>& options,
                                   const std::array<Strides2, 5>& strides,
                                   const std::array<std::int64_t, 5>& sizes, std::int64_t item) {
  headrace::CompactArgs args{};
  args.x = at<const char>(x);
  args.y = at<char>(y);
  std::copy(x_strides.begin(), x_strides.end(), args.x_strides);
  std::copy(y_strides.begin(), y_strides.end(), args.y_strides);
  args.index = at<const std::int32_t>(options[0]);
  args.count = at<const std::int32_t>(options[1]);
  args.target = at<const std::int32_t>(options[2]);
  args.weights = at<const float>(options[3]);
  args.mask = at<const std::uint8_t>(options[4]);
  std::int64_t* rows[] = {args.index_strides, args.count_strides, args.target_strides,
                          args.weight_strides, args.mask_strides};
  for (int i = 0; i < 5; ++i) std::copy(strides[i].begin(), strides[i].end(), rows[i]);
  args.batch = sizes[0];
  args.heads = sizes[1];
  args.size = sizes[2];
  args.capacity = sizes[3];
  args.depth = sizes[4];
  args.item = item;
  return args;
}

void compact(Address x, Strides3 x_strides, Address y, Strides3 y_strides,
             std::array<Address, 5> options, std::array<Strides2, 5> strides,
             std::array<std::int64_t, 5> sizes, std::int64_t item, int dtype,
             std::array<Address, 3> outs, int threads) {
  auto args = compact_args(x, x_strides, y, y_strides, options, strides, sizes, item);
  args.dtype = dtype;
  args.sizes = at<float>(outs[0]);
  args.kept = at<std::int32_t>(outs[1]);
  args.kept_count = at<std::int32_t>(outs[2]);
  py::gil_scoped_release nogil;
  headrace::compact(args, threads);
}

void compact_inplace(Address y, Strides3 y_strides, std::array<Address, 5> options,
                     std::array<Strides2, 5> strides, std::array<std::int64_t, 5> sizes,
                     std::int64_t item, int threads) {
  const auto args = compact_args(0, {}, y, y_strides, options, strides, sizes, item);
  py::gil_scoped_release nogil;
  headrace::compact_inplace(args, threads);
}

void scatter_back(Address x, Strides3 x_strides, Address y, Strides3 y_strides,
                  std::array<Address, 5> options, std::array<Strides2, 5> strides,
                  std::array<std::int64_t, 5> sizes, std::int64_t item, bool aligned, int threads) {
  auto args = compact_args(x, x_strides, y, y_strides, options, strides, sizes, item);
  args.aligned = aligned;
  py::gil_scoped_release nogil;
  headrace::scatter_back(args, threads);
}

// The ops over plain tensors. False, with nothing done, for anything else.

// x [N, D], [F, N, D] or [F, H, W, D]; ref the same, or with fewer leading axes, or with axes of 1;
// or rows [R, D] that an index names, which is like x without D, or has axes of 1.
bool similarity_plain(py::handle x, py::handle ref, int metric, py::handle index, py::handle alpha,
                      py::handle out, bool recorded, int threads) {
  headrace::SimilarityArgs args{};
  Described rows, others, scores;
  int dtype, other, kind, dims = 2;
  while (dims <= 4 && !plain(x, dims, recorded, rows, dtype)) ++dims;
  if (dims > 4 || dtype > headrace::kF16 || metric < 0 || !number(alpha, args.alpha) ||
      !(args.alpha > 0 && args.alpha < std::numeric_limits<double>::infinity())) {
    return false;
  }
  const bool named = !index.is_none();
  int fewer = named ? dims - 2 : 0;
  while (fewer < dims && !plain(ref, dims - fewer, recorded, others, other)) ++fewer;
  if (fewer == dims || (named && fewer != dims - 2) ||
      (other != dtype && other != headrace::kF32) ||
      others.shape[dims - fewer - 1] != rows.shape[dims - 1] ||
      !plain(out, dims - 1, recorded, scores, kind) || kind != headrace::kF32 || !dense(scores)) {
    return false;
  }
  args.ref = others.data;
  if (named) {
    args.ref_strides[2] = others.strides[0];
    args.ref_rows = others.shape[0];
    fewer = 0;
    if (!plain(index, dims - 1, recorded, others, kind) || kind != kPlainI32) return false;
    args.segments = static_cast<const std::int32_t*>(others.data);
  }
  std::int64_t sizes[3] = {1, 1, 1};
  for (int i = 0; i + 1 < dims; ++i) {
    const int to = dims == 4 ? i : i == dims - 2 ? 2 : 0;  // frame, height, width
    sizes[to] = rows.shape[i];
    args.x_strides[to] = rows.strides[i];
    const std::int64_t there = i < fewer ? 1 : others.shape[i - fewer];
    if ((there != 1 && there != rows.shape[i]) || scores.shape[i] != rows.shape[i]) return false;
    std::int64_t* strides = named ? args.segment_strides : args.ref_strides;
    if (there > 1) strides[to] = others.strides[i - fewer];
  }
  args.x = rows.data;
  args.out = static_cast<float*>(scores.data);
  args.patch_height = args.patch_width = 1;
  args.frames = sizes[0];
  args.height = args.out_height = sizes[1];
  args.width = args.out_width = sizes[2];
  args.depth = rows.shape[dims - 1];
  args.metric = metric;
  args.x_dtype = dtype;
  args.ref_dtype = other;
  py::gil_scoped_release nogil;
  headrace::similarity(args, threads);
  return true;
}

// y [N, D] and index [K] as CompactArgs.
bool moved_rows(py::handle y, py::handle index, bool recorded, headrace::CompactArgs& args,
                int& dtype) {
  Described rows, places;
  int kind;
  if (!plain(y, 2, recorded, rows, dtype) || dtype > kPlainI64 ||
      !plain(index, 1, recorded, places, kind) || kind != kPlainI32) {
    return false;
  }
  args.y = static_cast<char*>(rows.data);
  args.y_strides[2] = rows.strides[0];
  args.index = static_cast<const std::int32_t*>(places.data);
  args.batch = args.heads = 1;
  args.size = rows.shape[0];
  args.depth = rows.shape[1];
  args.capacity = places.shape[0];
  args.item = kItems[dtype];
  return true;
}

bool compact_inplace_rows(py::handle y, py::handle index, bool recorded, int threads) {
  headrace::CompactArgs args{};
  int dtype;
  if (!moved_rows(y, index, recorded, args, dtype)) return false;
  py::gil_scoped_release nogil;
  headrace::compact_inplace(args, threads);
  return true;
}

bool scatter_back_rows(py::handle y, py::handle x, py::handle index, bool recorded, int threads) {
  headrace::CompactArgs args{};
  Described rows;
  int dtype, other;
  if (!moved_rows(y, index, recorded, args, dtype) || !plain(x, 2, recorded, rows, other) ||
      other != dtype || rows.shape[0] != args.capacity || rows.shape[1] != args.depth) {
    return false;
  }
  args.x = static_cast<const char*>(rows.data);
  args.x_strides[2] = rows.strides[0];
  py::gil_scoped_release nogil;
  headrace::scatter_back(args, threads);
  return true;
}

// options: index, count, mask, target, weights, each may be None.
bool compact_plain(py::handle x, py::tuple options, py::handle y, py::handle sizes, py::handle kept,
                   py::handle number, bool recorded, int threads) {
  headrace::CompactArgs args{};
  Described rows, made, out[3], option;
  int dtype, other, kind, dims = 2;
  while (dims <= 4 && !plain(x, dims, recorded, rows, dtype)) ++dims;
  if (dims > 4 || dtype > kPlainI64 || options.size() != 5 ||
      !plain(y, dims, recorded, made, other) || other != dtype || !dense(made)) {
    return false;
  }
  const py::handle others[] = {sizes, kept, number};
  for (int i = 0; i < 3; ++i) {
    const int wanted = i == 0 ? static_cast<int>(headrace::kF32) : kPlainI32;
    if (!plain(others[i], dims - (i < 2 ? 1 : 2), recorded, out[i], kind) || kind != wanted ||
        !dense(out[i])) {
      return false;
    }
  }
  args.batch = dims > 2 ? rows.shape[0] : 1;
  args.heads = dims > 3 ? rows.shape[1] : 1;
  args.size = rows.shape[dims - 2];
  args.depth = rows.shape[dims - 1];
  args.capacity = made.shape[dims - 2];
  for (int i = 0; i + 2 < dims; ++i) {
    args.x_strides[i] = rows.strides[i];
    args.y_strides[i] = made.strides[i];
  }
  args.x_strides[2] = rows.strides[dims - 2];
  args.y_strides[2] = made.strides[dims - 2];
  const std::int64_t lead[] = {args.batch, args.heads};
  // Whether an option is absent, or plain and of so many elements behind batch and head.
  const auto fits = [&](int which, int inner, int wanted, std::int64_t size,
                        std::int64_t* strides) {
    const py::handle given = PyTuple_GET_ITEM(options.ptr(), which);
    option.data = nullptr;
    return given.is_none() || (plain_rows(given, inner, lead, recorded, option, kind, strides) &&
                               kind == wanted && (inner == 0 || option.shape[0] == size));
  };
  if (!fits(0, 1, kPlainI32, args.capacity, args.index_strides)) return false;
  args.index = static_cast<const std::int32_t*>(option.data);
  if (!fits(1, 0, kPlainI32, 0, args.count_strides)) return false;
  args.count = static_cast<const std::int32_t*>(option.data);
  if (!fits(2, 1, kPlainBool, args.size, args.mask_strides)) return false;
  args.mask = static_cast<const std::uint8_t*>(option.data);
  if (!fits(3, 1, kPlainI32, args.size, args.target_strides)) return false;
  args.target = static_cast<const std::int32_t*>(option.data);
  if (!fits(4, 1, headrace::kF32, args.size, args.weight_strides)) return false;
  args.weights = static_cast<const float*>(option.data);
  if ((!args.index == !args.mask) || (args.mask && args.count) ||
      (args.target && dtype > headrace::kF16)) {
    return false;
  }
  args.x = static_cast<const char*>(rows.data);
  args.y = static_cast<char*>(made.data);
  args.sizes = static_cast<float*>(out[0].data);
  args.kept = static_cast<std::int32_t*>(out[1].data);
  args.kept_count = static_cast<std::int32_t*>(out[2].data);
  args.item = kItems[dtype];
  args.dtype = dtype;
  py::gil_scoped_release nogil;
  headrace::compact(args, threads);
  return true;
}

}  // namespace

void prune_family(py::module_& m) {
  m.def("similarity", &similarity);
  m.def("compact", &compact);
  m.def("compact_inplace", &compact_inplace);
  m.def("scatter_back", &scatter_back);
  m.def("similarity_plain", &similarity_plain);
  m.def("compact_plain", &compact_plain);
  m.def("compact_inplace_rows", &compact_inplace_rows);
  m.def("scatter_back_rows", &scatter_back_rows);
}

}  // namespace headrace::bind
