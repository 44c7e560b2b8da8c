// SPDX-License-Identifier: Apache-2.0
// Token ids of many streams in a row, out of the tensors and lists that callers hold them in, in
// one call for all streams. headrace.streams.tokens says what else may hold them, and what is wrong
// with what does not.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "bind/tensor.h"

namespace headrace::bind {

namespace {

// int64 [T] on the CPU, dense, or null.
const std::int64_t* numbers(py::handle tensor, std::int64_t& count) {
  Described shown;
  int dtype = -1;
  if (!lies(tensor, false, shown, dtype) || dtype != kInt64) return nullptr;
  if (shown.dims != 1 || shown.strides[0] != 1) return nullptr;
  count = shown.shape[0];
  return static_cast<const std::int64_t*>(shown.data);
}

// The numbers of a list of Python's own ints, or nothing.
bool read(PyObject* list, std::vector<std::int64_t>* ids) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    PyObject* one = PyList_GET_ITEM(list, i);
    int over = 0;
    if (!PyLong_CheckExact(one)) return false;
    ids->push_back(PyLong_AsLongLongAndOverflow(one, &over));
    if (over) return false;
  }
  return true;
}

// How many ids each of `given` has, and all of them in a row in what make(count) gives, int64 [T];
// None where one is neither a dense int64 [T] nor a list of ints, or an id is not in [0, vocab):
// those are for a closer look.
py::object join(const py::list& given, std::int64_t vocab, const py::function& make) {
  std::vector<std::int64_t> ids;
  py::list counts(given.size());
  for (std::size_t i = 0; i < given.size(); ++i) {
    PyObject* one = PyList_GET_ITEM(given.ptr(), i);
    const std::size_t before = ids.size();
    std::int64_t count = 0;
    if (const std::int64_t* from = numbers(one, count)) {
      ids.insert(ids.end(), from, from + count);
    } else if (!PyList_CheckExact(one) || !read(one, &ids)) {
      return py::none();
    }
    PyList_SET_ITEM(counts.ptr(), i, py::int_(ids.size() - before).release().ptr());
  }
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= vocab) return py::none();
  }
  const py::object made = make(ids.size());
  std::int64_t room = 0;
  const std::int64_t* to = numbers(made, room);
  if (!to || room != std::int64_t(ids.size())) return py::none();
  std::copy(ids.begin(), ids.end(), const_cast<std::int64_t*>(to));
  return py::make_tuple(counts, made);
}

}  // namespace

void tokens(py::module_& m) {
  m.def("join_ids", &join, py::arg("given"), py::arg("vocab"), py::arg("make"));
}

}  // namespace headrace::bind
