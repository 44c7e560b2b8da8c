// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

#include "bind/bind.h"

namespace headrace::bind {

void probes(py::module_& m) {
  m.def("multiply_add_rate", &multiply_add_rate, py::arg("dtype"), py::arg("seconds"),
        py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "read_seconds",
      [](Address data, std::int64_t words, std::int64_t again, int threads) {
        return read_seconds(at<const float>(data), words, again, threads);
      },
      py::arg("data"), py::arg("words"), py::arg("again"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "copy_seconds",
      [](Address from, std::int64_t words, Address to, std::int64_t copied, int threads) {
        return copy_seconds(at<const float>(from), words, at<float>(to), copied, threads);
      },
      py::arg("from_"), py::arg("words"), py::arg("to"), py::arg("copied"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace headrace::bind
