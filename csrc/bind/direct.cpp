// SPDX-License-Identifier: Apache-2.0
// The way of a call that lies ready: arguments are read, matched with the contract, and go to the
// kernel with results of the right sizes, all without torch's dispatcher.
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/call.h"
#include "bind/tensor.h"
#include "common/pages.h"

namespace headrace::bind {

namespace {

// An axis: its number among those of the op and what its size has beyond it; or sizes that it may
// have.
using Axis = std::tuple<int, int, std::vector<std::int64_t>>;
// Name, kind (of tensors "t", else the first letter of the schema's type), whether it may be None,
// default; axes, whether the last one may be missing, dtypes as bits, whose dtype it must have (or
// -1), whether rows ("last") or all must be dense.
using Parameter = std::tuple<std::string, std::string, bool, py::object, std::vector<Axis>, bool,
                             std::uint32_t, int, std::string>;
// Axes, those from `known` on told by the op; whose dtype (or -1), else which, as a code.
using Result = std::tuple<std::vector<int>, int, int>;
constexpr int kMostSpread = 8;  // axes of a tensor whose leading ones may be left out

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

struct Shared {
  std::vector<py::object> watchers;  // functions that give something false as long as nobody looks
  std::vector<std::tuple<py::dict, py::object, py::object>> flags;  // table, key, the usual value
  py::object recording, threads, empty, wrote, is_inference, otherwise;
  std::vector<py::object> dtypes;  // by code
};

class Direct {
 public:
  Direct(const Op& op, std::vector<Parameter> parameters, std::vector<Result> results, int known,
         int lead, std::vector<int> mutated, Shared shared)
      : op_(op),
        parameters_(std::move(parameters)),
        results_(std::move(results)),
        known_(known),
        lead_(lead),
        mutated_(std::move(mutated)),
        shared_(std::move(shared)) {}

  // Of arguments in the order of the schema; the last ones may be missing.
  py::object call(PyObject* const* values, std::size_t count) const {
    PyObject* all[kMost];
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      all[i] = i < count ? values[i] : std::get<3>(parameters_[i]).ptr();
    }
    if (count <= parameters_.size()) {
      if (py::object out = ready(all)) return out;
    }
    return stolen(PyObject_Vectorcall(shared_.otherwise.ptr(), values, count, nullptr));
  }

 private:
  using Room = std::int64_t[2 * kMostSpread];

  // What the kernel gives; null, with nothing done, for what does not lie ready.
  py::object ready(PyObject* const* values) const {
    if (watched()) return {};
    Given given[kMost];
    Room rooms[kMost];
    const bool recorded = truth(shared_.recording);
    std::int64_t axes[2 * kMostAxes];
    if (!read(values, given, rooms, recorded) || !match(given, axes) ||
        !op_.serves(given, axes + known_)) {
      return {};
    }
    const int fewer = given[0].fewer;  // of rows, which the results are like
    py::object outs[kMost];
    for (std::size_t i = 0; i < results_.size(); ++i) {
      outs[i] = empty(results_[i], given, axes, fewer);
      const std::size_t place = parameters_.size() + i;
      Given& to = given[place];
      to.there = lies(outs[i], false, to.at, to.dtype);
      if (!to.there) return {};  // a default device, or the like
      std::int64_t bytes = kItems[to.dtype];
      for (int axis = 0; axis < to.at.dims; ++axis) bytes *= to.at.shape[axis];
      prefer_huge_pages(to.at.data, bytes);
      if (fewer) spread(to, fewer, rooms[place]);
    }
    run_op(op_, given, static_cast<int>(PyLong_AsLong(called(shared_.threads).ptr())));
    if (recorded && !mutated_.empty()) wrote(values, given);
    if (results_.empty()) return py::none();
    if (results_.size() == 1) return outs[0];
    py::tuple all(results_.size());
    for (std::size_t i = 0; i < results_.size(); ++i) all[i] = outs[i];
    return all;
  }

  static py::object stolen(PyObject* got) {
    if (!got) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(got);
  }
  static py::object called(const py::object& function) {
    return stolen(PyObject_CallNoArgs(function.ptr()));
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

  // Puts axes of 1 behind the leading ones that are there.
  void spread(Given& x, int fewer, Room& room) const {
    const int whole = x.at.dims + fewer, kept = lead_ - fewer;
    for (int i = 0; i < whole; ++i) {
      const bool there = i < kept || i >= lead_;
      room[i] = there ? x.at.shape[i < kept ? i : i - fewer] : 1;
      room[kMostSpread + i] = there ? x.at.strides[i < kept ? i : i - fewer] : 0;
    }
    x.at.shape = room;
    x.at.strides = room + kMostSpread;
    x.at.dims = whole;
    x.fewer = fewer;
  }

  bool read(PyObject* const* values, Given* given, Room* rooms, bool recorded) const {
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
      const int missing = static_cast<int>(axes.size()) - to.at.dims;
      if (missing > 0 && missing <= lead_) spread(to, missing, rooms[i]);
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

  // Without the axes that the rows are fewer.
  py::object empty(const Result& result, const Given* given, const std::int64_t* axes,
                   int fewer) const {
    const auto& [sizes, like, code] = result;
    const auto dtype = static_cast<std::size_t>(like < 0 ? code : given[like].dtype);
    std::int64_t shape[kMostAxes];
    std::size_t count = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const int place = static_cast<int>(i);
      if (place >= lead_ - fewer && place < lead_) continue;
      shape[count++] = axes[sizes[i]];
    }
    py::object small = made(shape, static_cast<int>(count), static_cast<int>(dtype));
    if (small) return small;
    PyObject* values[kMostAxes];
    for (std::size_t i = 0; i < count; ++i) values[i] = PyLong_FromLongLong(shape[i]);
    values[count] = shared_.dtypes[dtype].ptr();
    PyObject* large = PyObject_Vectorcall(shared_.empty.ptr(), values, count, dtype_.ptr());
    for (std::size_t i = 0; i < count; ++i) Py_DECREF(values[i]);
    return stolen(large);
  }

  // What autograd saved of these must not pass unnoticed.
  void wrote(PyObject* const* values, const Given* given) const {
    py::list written;
    for (const int i : mutated_) {
      if (!given[i].there) continue;
      const py::object apart =
          stolen(PyObject_CallMethodNoArgs(values[i], shared_.is_inference.ptr()));
      if (apart.ptr() == Py_False) written.append(py::handle(values[i]));
    }
    if (!written.empty()) stolen(PyObject_CallOneArg(shared_.wrote.ptr(), written.ptr()));
  }

  const Op op_;
  const std::vector<Parameter> parameters_;
  const std::vector<Result> results_;
  const int known_, lead_;
  const std::vector<int> mutated_;
  const Shared shared_;
  const py::tuple dtype_ = py::make_tuple("dtype");
};

// Without pybind's own dispatch, which takes as long as reading the arguments.
PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  try {
    const auto* direct = static_cast<const Direct*>(PyCapsule_GetPointer(self, nullptr));
    return direct->call(args, static_cast<std::size_t>(count)).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef kCall = {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&call)),
                     METH_FASTCALL, nullptr};

py::object direct(const std::string& name, std::vector<Parameter> parameters,
                  std::vector<Result> results, int known, int lead, std::vector<int> mutated,
                  const py::dict& shared) {
  const Op& op = op_named(name);
  std::string names;
  bool spreads = true;
  for (const Parameter& p : parameters) {
    names += std::get<0>(p) + ", ";
    const int axes = static_cast<int>(std::get<4>(p).size());
    spreads &= std::get<1>(p) != "t" || lead == 0 || (lead <= axes && axes <= kMostSpread);
  }
  if ((op.names + ", ").rfind(names, 0) != 0 || op.count != parameters.size() + results.size() ||
      known > kMostAxes || !spreads) {
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
  with.is_inference = shared["is_inference"];
  with.otherwise = shared["otherwise"];
  const auto* made = new Direct(op, std::move(parameters), std::move(results), known, lead,
                                std::move(mutated), std::move(with));  // as long as the process
  return py::reinterpret_steal<py::object>(PyCFunction_New(&kCall, py::capsule(made).ptr()));
}

}  // namespace

void calls(py::module_& m) { m.def("direct", &direct); }

}  // namespace headrace::bind
