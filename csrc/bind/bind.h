// SPDX-License-Identifier: Apache-2.0
// What every binding uses. Ops are bound as call.h says; what else is bound takes integers
// (addresses, sizes). What only the values can tell is checked in the host file of the family.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

namespace headrace::bind {

namespace py = pybind11;

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace headrace::bind
