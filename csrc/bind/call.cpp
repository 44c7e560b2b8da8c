// SPDX-License-Identifier: Apache-2.0
#include "bind/call.h"

#include <map>
#include <stdexcept>

#include "bind/tensor.h"

namespace headrace::bind {

namespace {

std::map<std::string, Op>& known_ops() {
  static std::map<std::string, Op> known;
  return known;
}

// What Python has checked.
void run_checked(const Op& op, const py::list& values, int threads) {
  Given given[kMost];
  std::int64_t sizes[kMost][2 * kMostAxes];
  if (values.size() != op.count) throw std::length_error(op.names);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const py::handle x = values[i];
    Given& to = given[i];
    if (x.is_none()) continue;
    to.there = true;
    if (PyFloat_Check(x.ptr())) {
      to.number = x.cast<double>();
    } else if (PyLong_Check(x.ptr())) {  // or a bool
      to.whole = x.cast<std::int64_t>();
    } else if (PyUnicode_Check(x.ptr())) {
      to.text = PyUnicode_AsUTF8(x.ptr());
    } else {
      described(x, to.at, to.dtype, sizes[i], kMostAxes);
    }
  }
  run_op(op, given, threads);
}

}  // namespace

void run_op(const Op& op, const Given* given, int threads) {
  const py::gil_scoped_release nogil;
  op.run(given, threads);
}

const Op& op_named(const std::string& name) { return known_ops().at(name); }

void bind_op(const char* name, const Op& op) {
  if (op.count > kMost) throw std::length_error(name);
  known_ops()[name] = op;
}

void ops(py::module_& m) {
  for (const auto& [name, op] : known_ops()) {
    m.def(name.c_str(),
          [op = op](const py::list& given, int threads) { run_checked(op, given, threads); });
  }
}

}  // namespace headrace::bind
