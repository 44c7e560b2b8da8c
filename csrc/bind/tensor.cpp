// SPDX-License-Identifier: Apache-2.0
#include "bind/tensor.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/simd/types.h"

namespace headrace::bind {

namespace {

// A tensor that owns its memory, as DLPack hands it over.
struct Managed {
  std::uint32_t major, minor;
  void* owner;
  void (*release)(Managed* self);
  std::uint64_t flags;
  Described tensor;
};

// The head of DLPack's table; what follows is not used here.
struct Exchange {
  std::uint32_t major, minor;
  Exchange* before;
  void *allocate, *from_object;
  int (*to_object)(Managed* taken, void** object);
  int (*describe)(void* object, Described* to);
};

constexpr std::int32_t kCpu = 1;
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

// The other way round.
void set_dtype(int dtype, Described& to) {
  constexpr std::uint8_t kKinds[] = {2, 4, 2, 0, 10, 1, 0, 0, 6, 2};
  to.kind = kKinds[dtype];
  to.bits = static_cast<std::uint8_t>(8 * kItems[dtype]);
  to.lanes = 1;
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

py::object made(const std::int64_t* shape, int dims, int dtype) {
  // What describes the tensor lies ahead of its elements, which begin at a cache line.
  constexpr std::int64_t kLine = 64, kMost = 1 << 16;
  std::int64_t bytes = kItems[dtype];
  for (int i = 0; i < dims; ++i) {
    if (shape[i] > kMost) return {};
    bytes *= shape[i];
    if (bytes > kMost) return {};
  }
  if (!exchange || !exchange->to_object) return {};
  const std::int64_t head = static_cast<std::int64_t>(sizeof(Managed)) + 16 * dims;
  const std::int64_t ahead = (head + kLine - 1) / kLine * kLine;
  const std::int64_t whole = ahead + (bytes + kLine - 1) / kLine * kLine;
  char* block = static_cast<char*>(std::aligned_alloc(kLine, static_cast<std::size_t>(whole)));
  if (!block) throw std::bad_alloc();
  auto* taken = new (block) Managed{};
  taken->major = exchange->major;
  taken->minor = exchange->minor;
  taken->release = [](Managed* self) { std::free(self); };
  Described& x = taken->tensor;
  x.data = block + ahead;
  x.device_type = kCpu;
  x.dims = dims;
  x.shape = reinterpret_cast<std::int64_t*>(taken + 1);
  x.strides = x.shape + dims;
  set_dtype(dtype, x);
  std::int64_t step = 1;
  for (int i = dims - 1; i >= 0; --i) {
    x.shape[i] = shape[i];
    x.strides[i] = step;
    step *= std::max<std::int64_t>(shape[i], 1);
  }
  void* object = nullptr;
  if (exchange->to_object(taken, &object) != 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
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
