// SPDX-License-Identifier: Apache-2.0
#include "select.h"

#include <algorithm>

#include "bind/plain.h"
#include "csrc/simd/types.h"

namespace headrace::bind {

namespace {

// The optional arrays come in the order budget, counts, buckets, forced, lengths.
void select(Address score, Strides2 score_strides, std::array<std::int64_t, 4> sizes, int dtype,
            int policy, std::array<Address, 5> options,
            std::array<std::array<std::int64_t, 4>, 5> strides, std::int64_t ranges,
            std::array<double, 3> amounts, std::array<std::int64_t, 3> numbers, Strides2 ends,
            bool lowest, Address index, Address count, int threads) {
  headrace::SelectArgs args{};
  args.score = at<const void>(score);
  std::copy(score_strides.begin(), score_strides.end(), args.score_strides);
  args.dtype = dtype;
  args.batch = sizes[0];
  args.heads = sizes[1];
  args.size = sizes[2];
  args.capacity = sizes[3];
  args.policy = static_cast<headrace::SelectPolicy>(policy);
  args.budget = at<const std::int32_t>(options[0]);
  args.counts = at<const float>(options[1]);
  args.buckets = at<const std::int32_t>(options[2]);
  args.forced = at<const std::int32_t>(options[3]);
  args.lengths = at<const std::int32_t>(options[4]);
  std::int64_t* rows[] = {args.budget_strides, args.counts_strides, args.buckets_strides,
                          args.forced_strides, args.lengths_strides};
  for (int i = 0; i < 5; ++i) std::copy_n(strides[i].begin(), i == 3 ? 4 : 2, rows[i]);
  args.ranges = ranges;
  args.threshold = amounts[0];
  args.share = amounts[1];
  args.mass = amounts[2];
  args.limit = numbers[0];
  args.quota = numbers[1];
  args.floor = numbers[2];
  args.first = ends[0];
  args.last = ends[1];
  args.lowest = lowest;
  args.index = at<std::int32_t>(index);
  args.count = at<std::int32_t>(count);
  py::gil_scoped_release nogil;
  headrace::select(args, threads);
}

// Of plain scores [N] or [B, N] by a policy and its number alone. False, with nothing done, for
// anything else.
bool select_rows(py::handle score, int policy, std::int64_t limit, std::array<double, 3> amounts,
                 bool lowest, py::handle index, py::handle count, bool recorded, int threads) {
  Described rows, kept, counts;
  int dtype, kind, number;
  const bool one = plain(score, 1, recorded, rows, dtype);
  const int dims = one ? 1 : 2;
  if ((!one && !plain(score, 2, recorded, rows, dtype)) || dtype > headrace::kF16 ||
      !plain(index, dims, recorded, kept, kind) ||
      !plain(count, dims - 1, recorded, counts, number) || kind != kPlainI32 ||
      number != kPlainI32) {
    return false;
  }
  headrace::SelectArgs args{};
  args.score = rows.data;
  args.score_strides[0] = one ? 0 : rows.strides[0];
  args.dtype = dtype;
  args.batch = one ? 1 : rows.shape[0];
  args.heads = 1;
  args.size = rows.shape[dims - 1];
  args.capacity = kept.shape[dims - 1];
  args.policy = static_cast<headrace::SelectPolicy>(policy);
  args.limit = limit;
  args.threshold = amounts[0];
  args.share = amounts[1];
  args.mass = amounts[2];
  args.lowest = lowest;
  args.quota = 1;
  args.index = static_cast<std::int32_t*>(kept.data);
  args.count = static_cast<std::int32_t*>(counts.data);
  py::gil_scoped_release nogil;
  headrace::select(args, threads);
  return true;
}

}  // namespace

void select_family(py::module_& m) {
  m.def("select", &select);
  m.def("select_rows", &select_rows);
}

}  // namespace headrace::bind
