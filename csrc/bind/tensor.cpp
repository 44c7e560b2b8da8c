// SPDX-License-Identifier: Apache-2.0
#include "bind/tensor.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/simd/types.h"

namespace headrace::bind {

namespace {

// The head of DLPack's table; what follows is not used here.
struct Exchange {
  std::uint32_t major, minor;
  Exchange* before;
  void *allocate, *from_object, *to_object;
  int (*describe)(void* object, Described* to);
};

const Exchange* exchange = nullptr;
PyObject *tensor_type = nullptr, *parameter_type = nullptr, *is_neg = nullptr;
PyObject* requires_grad = nullptr;

int dtype_of(const Described& x) {
  if (x.lanes != 1) return -1;
  switch (x.kind << 8 | x.bits) {
    case 2 << 8 | 32:
      return headrace::kF32;
    case 4 << 8 | 16:
      return headrace::kBF16;
    case 2 << 8 | 16:
      return headrace::kF16;
    case 0 << 8 | 8:
      return headrace::kI8;
    case 10 << 8 | 8:
      return headrace::kE4M3;
    case 1 << 8 | 8:
      return kUint8;
    case 0 << 8 | 32:
      return kInt32;
    case 0 << 8 | 64:
      return kInt64;
    case 2 << 8 | 64:
      return kFloat64;
    case 6 << 8 | 8:
      return kBool;
    default:
      return -1;
  }
}

// Whether `answer` is False; an error counts as something else.
bool denied(PyObject* answer) {
  if (!answer) PyErr_Clear();
  Py_XDECREF(answer);
  return answer == Py_False;
}

}  // namespace

void take_exchange(py::object capsule, py::object tensor, py::object parameter) {
  constexpr std::uint32_t kMajor = 1;
  const void* table = PyCapsule_CheckExact(capsule.ptr())
                          ? PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr()))
                          : nullptr;
  if (!table) {
    PyErr_Clear();
    return;
  }
  const auto* found = static_cast<const Exchange*>(table);
  if (found->major != kMajor || !found->describe) return;
  capsule.release();  // for as long as the process lives
  tensor_type = tensor.release().ptr();
  parameter_type = parameter.release().ptr();
  is_neg = PyUnicode_InternFromString("is_neg");
  requires_grad = PyUnicode_InternFromString("requires_grad");
  exchange = found;
}

bool lies(py::handle x, bool recorded, Described& to, int& dtype) {
  constexpr std::int32_t kCpu = 1;
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(x.ptr()));
  if (!exchange || (type != tensor_type && type != parameter_type)) return false;
  if (exchange->describe(x.ptr(), &to) != 0) {
    PyErr_Clear();
    return false;
  }
  dtype = dtype_of(to);
  if (to.device_type != kCpu || to.offset != 0 || dtype < 0) return false;
  const bool real = dtype <= headrace::kF16 || dtype == headrace::kE4M3 || dtype == kFloat64;
  if (!real) return true;  // integers have no sign to turn
  return denied(PyObject_CallMethodNoArgs(x.ptr(), is_neg)) &&
         (!recorded || denied(PyObject_GetAttr(x.ptr(), requires_grad)));
}

void described(py::handle x, Described& to, int& dtype, std::int64_t* room, int most) {
  if (exchange && exchange->describe(x.ptr(), &to) == 0) {
    to.data = static_cast<char*>(to.data) + to.offset;
    dtype = dtype_of(to);
    return;
  }
  PyErr_Clear();
  static const char* const kNames[] = {"float32", "bfloat16", "float16", "int8", "float8_e4m3fn",
                                       "uint8",   "int32",    "int64",   "bool", "float64"};
  const auto shape = x.attr("shape").cast<std::vector<std::int64_t>>();
  const auto strides = x.attr("stride")().cast<std::vector<std::int64_t>>();
  const std::string kind = py::str(x.attr("dtype"));
  if (shape.size() > static_cast<std::size_t>(most)) throw std::length_error("axes");
  to = {};
  to.data = at<void>(x.attr("data_ptr")().cast<Address>());
  to.dims = static_cast<std::int32_t>(shape.size());
  to.shape = std::copy(shape.begin(), shape.end(), room) - shape.size();
  to.strides = std::copy(strides.begin(), strides.end(), room + most) - shape.size();
  dtype = -1;
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i) {
    if (kind == std::string("torch.") + kNames[i]) dtype = i;
  }
}

bool dense(const Described& x) {
  if (std::find(x.shape, x.shape + x.dims, 0) != x.shape + x.dims) return true;
  std::int64_t step = 1;
  for (int i = x.dims - 1; i >= 0; --i) {
    if (x.shape[i] > 1 && x.strides[i] != step) return false;
    step *= x.shape[i];
  }
  return true;
}

}  // namespace headrace::bind
