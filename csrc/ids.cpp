// SPDX-License-Identifier: Apache-2.0
// Token ids of many streams in a row, out of the tensors and lists that callers hold them in, in
// one call for all streams. headrace.streams.tokens says what else may hold them, and what is wrong
// with what does not.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace headrace::bind {

namespace py = pybind11;

namespace {

// How torch shows a tensor to C: DLPack's exchange table, of version 1
// (https://github.com/dmlc/dlpack, dlpack.h).
struct Shown {
  void* data;
  struct {
    std::int32_t type, id;
  } device;
  std::int32_t dims;
  struct {
    std::uint8_t code, bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t *shape, *strides;
  std::uint64_t offset;
};

struct Exchange {
  struct {
    std::uint32_t major, minor;
  } version;
  Exchange* older;
  void (*allocate)();
  void (*share)();
  void (*adopt)();
  int (*show)(void* tensor, Shown* shown);
};

constexpr int kCpu = 1, kSigned = 0;

// int64 [T] on the CPU, or nothing.
bool show(const Exchange& exchange, PyObject* tensor, Shown* shown) {
  if (exchange.show(tensor, shown) != 0) {
    PyErr_Clear();
    return false;
  }
  return shown->device.type == kCpu && shown->dims == 1 && shown->dtype.code == kSigned &&
         shown->dtype.bits == 64 && shown->dtype.lanes == 1;
}

const std::int64_t* first(const Shown& shown) {
  return reinterpret_cast<const std::int64_t*>(static_cast<const char*>(shown.data) + shown.offset);
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
// None where one is neither a `kind` int64 [T] on the CPU nor a list of ints, or an id is not in
// [0, vocab): those are for a closer look. exchange: of the class of tensors, `kind`.
py::object join(const py::list& given, const py::type& kind, const py::capsule& exchange,
                std::int64_t vocab, const py::function& make) {
  const auto& torch = *exchange.get_pointer<const Exchange>();
  if (torch.version.major != 1 || !torch.show) return py::none();
  std::vector<std::int64_t> ids;
  py::list counts(given.size());
  Shown shown;
  for (std::size_t i = 0; i < given.size(); ++i) {
    PyObject* one = PyList_GET_ITEM(given.ptr(), i);
    const std::size_t before = ids.size();
    if (reinterpret_cast<PyObject*>(Py_TYPE(one)) == kind.ptr()) {
      if (!show(torch, one, &shown)) return py::none();
      for (std::int64_t j = 0; j < shown.shape[0]; ++j) {
        ids.push_back(first(shown)[j * shown.strides[0]]);
      }
    } else if (!PyList_CheckExact(one) || !read(one, &ids)) {
      return py::none();
    }
    PyList_SET_ITEM(counts.ptr(), i, py::int_(ids.size() - before).release().ptr());
  }
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= vocab) return py::none();
  }
  const py::object made = make(ids.size());
  if (reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())) != kind.ptr() ||
      !show(torch, made.ptr(), &shown) || shown.shape[0] != std::int64_t(ids.size())) {
    throw py::value_error("make: int64 [count] on the CPU");
  }
  std::copy(ids.begin(), ids.end(), const_cast<std::int64_t*>(first(shown)));
  return py::make_tuple(counts, made);
}

}  // namespace

void tokens(py::module_& m) {
  m.def("join_ids", &join, py::arg("given"), py::arg("kind"), py::arg("exchange"), py::arg("vocab"),
        py::arg("make"));
}

}  // namespace headrace::bind
