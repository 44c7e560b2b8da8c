// SPDX-License-Identifier: Apache-2.0
// The extension module: what it is and how it was built. The ops of a family are bound in
// bind/<family>.cpp; the list of families is that of CMakeLists.txt.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "bind/tensor.h"
#include "build_info.h"
#include "common/isa.h"
#include "common/pages.h"

namespace py = pybind11;

namespace headrace::bind {
#define HEADRACE_DECLARE(family) void family##_family();
HEADRACE_EACH_FAMILY(HEADRACE_DECLARE)
#undef HEADRACE_DECLARE
void ops(py::module_& m);     // of all families
void calls(py::module_& m);   // of ops, past torch's dispatcher
void probes(py::module_& m);  // of the machine
void transfers(py::module_& m);
void tables(py::module_& m);  // of streams, as is the next
void tokens(py::module_& m);
}  // namespace headrace::bind

PYBIND11_MODULE(_C, m) {
  headrace::active_isa();  // an impossible HEADRACE_ISA fails here, as the ImportError that it is
  m.doc() = "Compiled kernels of headrace; the public functions are in headrace.ops.";
  m.def("available_isas", &headrace::available_isas, "Levels this machine has, slowest first.");
  m.def("active_isa", [] { return std::string(headrace::isa_name(headrace::active_isa())); });
  m.def("force_isa", &headrace::force_isa, py::arg("name"),
        "Run at this level from now on; an empty name restores the default.");
  m.def("build_info", [] {
    return py::dict(py::arg("compiler") = HEADRACE_COMPILER, py::arg("flags") = HEADRACE_FLAGS,
                    py::arg("cuda") = HEADRACE_CUDA_STATE,
#ifdef _OPENMP
                    py::arg("openmp") = _OPENMP
#else
                    py::arg("openmp") = 0
#endif
    );
  });
  m.def(
      "prefer_huge_pages",
      [](std::uintptr_t data, std::int64_t bytes) {
        headrace::prefer_huge_pages(reinterpret_cast<void*>(data), bytes);
      },
      py::arg("data"), py::arg("bytes"));
  m.def("take_exchange", &headrace::bind::take_exchange, py::arg("capsule"), py::arg("tensor"),
        py::arg("parameter"));
#define HEADRACE_BIND(family) headrace::bind::family##_family();
  HEADRACE_EACH_FAMILY(HEADRACE_BIND)
#undef HEADRACE_BIND
  headrace::bind::ops(m);
  headrace::bind::calls(m);
  headrace::bind::probes(m);
  headrace::bind::transfers(m);
  headrace::bind::tables(m);
  headrace::bind::tokens(m);
}
