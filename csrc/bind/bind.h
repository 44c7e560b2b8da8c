// SPDX-License-Identifier: Apache-2.0
// What every binding uses. A binding takes integers (addresses, sizes, strides in elements) and
// gives nothing back. Shapes and dtypes are checked in Python, where the tensors are; what only the
// values can tell is checked in the host file of the family.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

namespace headrace::bind {

namespace py = pybind11;

using Address = std::uintptr_t;
using Strides2 = std::array<std::int64_t, 2>;
using Strides3 = std::array<std::int64_t, 3>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace headrace::bind
