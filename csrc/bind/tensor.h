// SPDX-License-Identifier: Apache-2.0
// Tensors of small calls, read where they are: torch's table of C functions (that of DLPack, handed
// over as a capsule) tells of a tensor in a tenth of the time that its attributes take in Python.
#pragma once
#include "bind/bind.h"

namespace headrace::bind {

// As DLPack lays it out.
struct Described {
  void* data;
  std::int32_t device_type, device;
  std::int32_t dims;
  std::uint8_t kind, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;
  std::uint64_t offset;
};

// A tensor of the CPU that can be read as it lies; `dtype` is a code of types.h, or one of these.
enum MoreDType : int { kUint8 = 5, kInt32, kInt64, kBool, kFloat64 };
constexpr std::int64_t kItems[] = {4, 2, 2, 1, 1, 1, 4, 8, 1, 8};  // bytes of an element

// Takes the capsule, torch's Tensor and its Parameter; nothing lies ready before, nor of a table of
// another version.
void take_exchange(py::object capsule, py::object tensor, py::object parameter);

// Whether x is a tensor of the CPU, not of a subclass, that has no sign to be turned, nor, with
// `recorded`, a gradient.
bool lies(py::handle x, bool recorded, Described& to, int& dtype);

// Any tensor of the CPU, whatever there is of the table. Sizes and strides may go to `room`, which
// has `most` places for each.
void described(py::handle x, Described& to, int& dtype, std::int64_t* room, int most);

// Whether its elements lie one after the other.
bool dense(const Described& x);

}  // namespace headrace::bind
