// SPDX-License-Identifier: Apache-2.0
#include "bind/call.h"

#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace headrace::bind {

namespace {

constexpr int kMost = 24;      // arguments and results
constexpr int kMostAxes = 16;  // of an op, and of its tensors

// An axis: its number among those of the op and what its size has beyond it; or sizes that it may
// have.
using Axis = std::tuple<int, int, std::vector<std::int64_t>>;
// Name, kind (of tensors "t", else the first letter of the schema's type), whether it may be None,
// default; axes, whether the last one may be missing, dtypes as bits, whose dtype it must have (or
// -1), whether rows ("last") or all must be dense.
using Parameter = std::tuple<std::string, std::string, bool, py::object, std::vector<Axis>, bool,
                             std::uint32_t, int, std::string>;
// Axes, those from `known` on told by the op; whose dtype (or -1), else which.
using Result = std::tuple<std::vector<int>, int, py::object>;

std::map<std::string, Op>& ops() {
  static std::map<std::string, Op> known;
  return known;
}

// Numbers that have just the type of the schema: everything else is for torch to convert.
bool scalar(PyObject* x, char kind, Given& to) {
  switch (kind) {
    case 'f':
      to.number = PyFloat_CheckExact(x) ? PyFloat_AS_DOUBLE(x) : 0;
      return PyFloat_CheckExact(x);
    case 'b':
      to.whole = x == Py_True;
      return PyBool_Check(x);
    case 's':
      to.text = PyUnicode_CheckExact(x) ? PyUnicode_AsUTF8(x) : nullptr;
      if (!to.text) PyErr_Clear();
      return to.text != nullptr;
    default:
      int beyond = 0;
      to.whole = PyLong_CheckExact(x) ? PyLong_AsLongLongAndOverflow(x, &beyond) : 0;
      return PyLong_CheckExact(x) && beyond == 0;
  }
}

void run(const Op& op, const Given* given, int threads) {
  const py::gil_scoped_release nogil;
  op.run(given, threads);
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
  run(op, given, threads);
}

struct Shared {
  std::vector<py::object> watchers;  // functions that give something false as long as nobody looks
  std::vector<std::tuple<py::dict, py::object, py::object>> flags;  // table, key, the usual value
  py::object recording, threads, empty, wrote, unusual, parameter;
  std::vector<py::object> dtypes;  // by code
};

class Direct {
 public:
  Direct(const Op& op, std::vector<Parameter> parameters, std::vector<Result> results, int known,
         std::vector<int> mutated, Shared shared)
      : op_(op),
        parameters_(std::move(parameters)),
        results_(std::move(results)),
        known_(known),
        mutated_(std::move(mutated)),
        shared_(std::move(shared)) {
    for (const Parameter& p : parameters_) {
      names_.push_back(
          py::reinterpret_steal<py::object>(PyUnicode_InternFromString(std::get<0>(p).c_str())));
    }
    dtype_ = py::make_tuple("dtype");
  }

  // Arguments by position and by name.
  py::object call(PyObject* args, PyObject* kwargs) const {
    PyObject* values[kMost];
    return take(args, kwargs, values) ? call(values, parameters_.size()) : shared_.unusual;
  }

  // All of them, in the order of the schema.
  py::object call(PyObject* const* values, std::size_t count) const {
    if (count != parameters_.size() || watched()) return shared_.unusual;
    Given given[kMost];
    const bool recorded = truth(shared_.recording);
    std::int64_t axes[2 * kMostAxes];
    if (!read(values, given, recorded) || !match(given, axes) ||
        !op_.serves(given, axes + known_)) {
      return shared_.unusual;
    }
    py::object made[kMost];
    for (std::size_t i = 0; i < results_.size(); ++i) {
      made[i] = empty(results_[i], given, axes);
      Given& to = given[parameters_.size() + i];
      to.there = lies(made[i], false, to.at, to.dtype);
      if (!to.there) return shared_.unusual;  // a default device, or the like
    }
    run(op_, given, static_cast<int>(PyLong_AsLong(called(shared_.threads).ptr())));
    if (recorded && !mutated_.empty()) wrote(values, given);
    if (results_.empty()) return py::none();
    if (results_.size() == 1) return made[0];
    py::tuple all(results_.size());
    for (std::size_t i = 0; i < results_.size(); ++i) all[i] = made[i];
    return all;
  }

 private:
  static py::object called(const py::object& function) {
    PyObject* got = PyObject_CallNoArgs(function.ptr());
    if (!got) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(got);
  }
  static bool truth(const py::object& function) {
    return PyObject_IsTrue(called(function).ptr()) != 0;
  }

  bool watched() const {
    for (const auto& [table, key, usual] : shared_.flags) {
      PyObject* now = PyDict_GetItemWithError(table.ptr(), key.ptr());
      if (!now || PyObject_RichCompareBool(now, usual.ptr(), Py_EQ) != 1) return true;
    }
    for (const py::object& watcher : shared_.watchers) {
      if (truth(watcher)) return true;
    }
    return false;
  }

  // Values by the order of the schema; false unless each has its own.
  bool take(PyObject* args, PyObject* kwargs, PyObject** values) const {
    const std::size_t first = PyTuple_GET_SIZE(args), count = parameters_.size();
    if (first > count) return false;
    Py_ssize_t named = 0;
    for (std::size_t i = 0; i < count; ++i) {
      if (i < first) {
        values[i] = PyTuple_GET_ITEM(args, i);
        continue;
      }
      values[i] = PyDict_GetItemWithError(kwargs, names_[i].ptr());
      named += values[i] != nullptr;
      if (!values[i]) values[i] = std::get<3>(parameters_[i]).ptr();
    }
    return named == PyDict_GET_SIZE(kwargs);
  }

  bool read(PyObject* const* values, Given* given, bool recorded) const {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const auto& [name, kind, optional, usual, axes, fewer, dtypes, like, dense_] = parameters_[i];
      Given& to = given[i];
      if (values[i] == Py_None) {
        if (!optional) return false;
        continue;
      }
      to.there = true;
      if (kind[0] != 't') {
        if (!scalar(values[i], kind[0], to)) return false;
        continue;
      }
      if (!lies(values[i], recorded, to.at, to.dtype)) return false;
      const std::size_t dims = to.at.dims;
      if ((dims != axes.size() && !(fewer && dims + 1 == axes.size())) ||
          !(dtypes >> to.dtype & 1) || (dense_ == "all" && !dense(to.at)) ||
          (dense_ == "last" && to.at.strides[dims - 1] != 1)) {
        return false;
      }
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const int like = std::get<7>(parameters_[i]);
      if (like >= 0 && given[i].there && given[i].dtype != given[like].dtype) return false;
    }
    return true;
  }

  // Sizes by the names of the axes, which must agree.
  bool match(const Given* given, std::int64_t* sizes) const {
    for (int i = 0; i < 2 * kMostAxes; ++i) sizes[i] = -1;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (given[i].dtype < 0) continue;
      const auto& axes = std::get<4>(parameters_[i]);
      for (int a = 0; a < given[i].at.dims; ++a) {
        const auto& [axis, more, either] = axes[a];
        const std::int64_t size = given[i].size(a) - more;
        if (size < 0) return false;
        if (axis < 0) {
          bool good = false;
          for (const std::int64_t one : either) good |= size == one;
          if (!good) return false;
        } else if (sizes[axis] < 0) {
          sizes[axis] = size;
        } else if (sizes[axis] != size) {
          return false;
        }
      }
    }
    return true;
  }

  py::object empty(const Result& result, const Given* given, const std::int64_t* axes) const {
    const auto& [sizes, like, dtype] = result;
    PyObject* values[kMostAxes];
    for (std::size_t i = 0; i < sizes.size(); ++i) values[i] = PyLong_FromLongLong(axes[sizes[i]]);
    values[sizes.size()] =
        (like < 0 ? dtype : shared_.dtypes[static_cast<std::size_t>(given[like].dtype)]).ptr();
    PyObject* made = PyObject_Vectorcall(shared_.empty.ptr(), values, sizes.size(), dtype_.ptr());
    for (std::size_t i = 0; i < sizes.size(); ++i) Py_DECREF(values[i]);
    if (!made) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
  }

  void wrote(PyObject* const* values, const Given* given) const {
    PyObject* written[kMost];
    std::size_t count = 0;
    for (const int i : mutated_) {
      if (given[i].there) written[count++] = values[i];
    }
    PyObject* got = PyObject_Vectorcall(shared_.wrote.ptr(), written, count, nullptr);
    if (!got) throw py::error_already_set();
    Py_DECREF(got);
  }

  const Op op_;
  const std::vector<Parameter> parameters_;
  const std::vector<Result> results_;
  const int known_;
  const std::vector<int> mutated_;
  const Shared shared_;
  std::vector<py::object> names_;
  py::tuple dtype_;
};

// Without pybind's own dispatch, which takes as long as reading the arguments.
template <class Call>
PyObject* called(PyObject* self, const Call& call) {
  try {
    return call(*static_cast<const Direct*>(PyCapsule_GetPointer(self, nullptr))).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* by_name(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  return called(self, [&](const Direct& direct) {
    if (count != 2 || !PyTuple_Check(args[0]) || !PyDict_Check(args[1])) {
      throw py::type_error("expected a tuple and a dict");
    }
    return direct.call(args[0], args[1]);
  });
}

PyObject* in_order(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  return called(self, [&](const Direct& direct) {
    return direct.call(args, static_cast<std::size_t>(count));
  });
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
PyCFunction plain_function(Fast function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}
PyMethodDef kByName = {"by_name", plain_function(&by_name), METH_FASTCALL, nullptr};
PyMethodDef kInOrder = {"in_order", plain_function(&in_order), METH_FASTCALL, nullptr};

py::tuple direct(const std::string& name, std::vector<Parameter> parameters,
                 std::vector<Result> results, int known, std::vector<int> mutated,
                 const py::dict& shared) {
  const Op& op = ops().at(name);
  std::string names;
  for (const Parameter& p : parameters) names += std::get<0>(p) + ", ";
  if ((op.names + ", ").rfind(names, 0) != 0 || op.count != parameters.size() + results.size() ||
      known > kMostAxes) {
    throw std::invalid_argument(name + ": expected arguments and results " + op.names + ", got " +
                                names + "and " + std::to_string(results.size()) + " results");
  }
  Shared with;
  with.watchers = shared["watchers"].cast<decltype(with.watchers)>();
  with.flags = shared["flags"].cast<decltype(with.flags)>();
  with.dtypes = shared["dtypes"].cast<decltype(with.dtypes)>();
  with.recording = shared["recording"];
  with.threads = shared["threads"];
  with.empty = shared["empty"];
  with.wrote = shared["wrote"];
  with.unusual = shared["unusual"];
  const auto* made = new Direct(op, std::move(parameters), std::move(results), known,
                                std::move(mutated), std::move(with));  // as long as the process
  const py::capsule self(made);
  const auto function = [&](PyMethodDef* which) {
    return py::reinterpret_steal<py::object>(PyCFunction_New(which, self.ptr()));
  };
  return py::make_tuple(function(&kByName), function(&kInOrder));
}

}  // namespace

void bind_op(py::module_& m, const char* name, const Op& op) {
  if (op.count > kMost) throw std::length_error(name);
  ops()[name] = op;
  m.def(name, [op](const py::list& given, int threads) { run_checked(op, given, threads); });
}

void calls(py::module_& m) { m.def("direct", &direct); }

}  // namespace headrace::bind
