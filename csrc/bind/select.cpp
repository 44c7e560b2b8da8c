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

// What a call in Python gives beside the scores and the policy, in this order.
enum Given : int {
  kK,
  kThreshold,
  kShare,
  kMass,
  kBudget,
  kCounts,
  kBuckets,
  kForced,
  kLengths,
  kQuota,
  kFloor,
  kFirst,
  kLast,
  kLowest,
  kGiven
};

// Of plain tensors. False, with nothing done, for anything else.
bool select_plain(py::handle score, int policy, py::tuple given, py::handle index, py::handle count,
                  bool recorded, int threads) {
  using headrace::SelectPolicy;
  if (given.size() != kGiven) return false;
  const auto of = [&](int i) { return py::handle(PyTuple_GET_ITEM(given.ptr(), i)); };
  headrace::SelectArgs args{};
  args.policy = static_cast<SelectPolicy>(policy);
  args.limit = -1;
  const bool named = args.policy == SelectPolicy::kTopK || args.policy == SelectPolicy::kFlat;
  const bool k = !of(kK).is_none(), budget = !of(kBudget).is_none();
  if ((named && !k && !budget) || (k && (budget || !whole(of(kK), 0, args.limit))) ||
      (args.policy == SelectPolicy::kQuota && of(kBuckets).is_none()) ||
      !number(of(kThreshold), args.threshold) || !(args.threshold == args.threshold) ||
      !number(of(kShare), args.share) || !(args.share >= 0 && args.share <= 1) ||
      !number(of(kMass), args.mass) || !(args.mass >= 0 && args.mass <= 1) ||
      !whole(of(kQuota), 0, args.quota) || !whole(of(kFloor), 0, args.floor) ||
      !whole(of(kFirst), 0, args.first) || !whole(of(kLast), 0, args.last) ||
      !PyBool_Check(of(kLowest).ptr())) {
    return false;
  }
  args.lowest = of(kLowest).ptr() == Py_True;
  Described rows, kept, counts, option;
  int dtype, kind, other, dims = 1;
  while (dims <= 3 && !plain(score, dims, recorded, rows, dtype)) ++dims;
  if (dims > 3 || dtype > headrace::kF16 || !plain(index, dims, recorded, kept, kind) ||
      !plain(count, dims - 1, recorded, counts, other) || kind != kPlainI32 || other != kPlainI32) {
    return false;
  }
  args.score = rows.data;
  args.dtype = dtype;
  args.batch = dims > 1 ? rows.shape[0] : 1;
  args.heads = dims > 2 ? rows.shape[1] : 1;
  args.size = rows.shape[dims - 1];
  args.capacity = kept.shape[dims - 1];
  for (int i = 0; i + 1 < dims; ++i) args.score_strides[i] = rows.strides[i];
  const std::int64_t lead[] = {args.batch, args.heads};
  // Whether an option is absent, or plain and of `inner` axes that end in `size`.
  const auto fits = [&](int which, int inner, int dtype_wanted, std::int64_t size,
                        std::int64_t* strides) {
    if (of(which).is_none()) {
      option.data = nullptr;
      return true;
    }
    return plain_rows(of(which), inner, lead, recorded, option, kind, strides) &&
           kind == dtype_wanted && (inner == 0 || option.shape[inner - 1] == size);
  };
  const auto numbered = [&](int which, std::int64_t* strides) {
    return fits(which, 0, kPlainI32, 0, strides) && (!option.data || option.dims > 0);
  };
  if (!numbered(kBudget, args.budget_strides)) return false;
  args.budget = static_cast<const std::int32_t*>(option.data);
  if (args.policy == headrace::SelectPolicy::kFlat && args.budget && args.budget_strides[1] != 0) {
    return false;
  }
  if (!fits(kCounts, 1, headrace::kF32, args.size, args.counts_strides)) return false;
  args.counts = static_cast<const float*>(option.data);
  if (!fits(kBuckets, 1, kPlainI32, args.size, args.buckets_strides)) return false;
  args.buckets = static_cast<const std::int32_t*>(option.data);
  if (!fits(kForced, 2, kPlainI32, 2, args.forced_strides)) return false;
  args.forced = static_cast<const std::int32_t*>(option.data);
  if (args.forced) {
    args.ranges = option.shape[0];
    args.forced_strides[2] = option.strides[0];
    args.forced_strides[3] = option.strides[1];
  }
  if (!numbered(kLengths, args.lengths_strides)) return false;
  args.lengths = static_cast<const std::int32_t*>(option.data);
  args.index = static_cast<std::int32_t*>(kept.data);
  args.count = static_cast<std::int32_t*>(counts.data);
  py::gil_scoped_release nogil;
  headrace::select(args, threads);
  return true;
}

}  // namespace

void select_family(py::module_& m) {
  m.def("select", &select);
  m.def("select_plain", &select_plain);
}

}  // namespace headrace::bind
