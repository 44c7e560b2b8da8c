// SPDX-License-Identifier: Apache-2.0
// Page tables as Python holds them: read, and made anew, where their slots lie.
#pragma once
#include <pybind11/pybind11.h>
#include <structmember.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace headrace::bind {

namespace py = pybind11;

using Int = std::int64_t;

inline PyObject* checked(PyObject* x) {
  if (!x) throw py::error_already_set();
  return x;
}

inline Int number(PyObject* x) {
  const Int value = PyLong_AsLongLong(checked(x));
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// Where the slots of a class lie in its objects.
struct Slots {
  explicit Slots(PyTypeObject* type) : type(type) {
    const py::handle of(reinterpret_cast<PyObject*>(type));
    for (py::handle name : of.attr("__slots__")) {
      const py::object slot = py::getattr(of, name);
      if (Py_TYPE(slot.ptr()) != &PyMemberDescr_Type) throw py::type_error("a class of slots");
      names.push_back(name.cast<std::string>());
      offsets.push_back(reinterpret_cast<PyMemberDescrObject*>(slot.ptr())->d_member->offset);
    }
  }
  Py_ssize_t offset(const char* name) const {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw py::type_error(std::string("a class with the slot ") + name);
    return offsets[found - names.begin()];
  }

  PyTypeObject* type;
  std::vector<std::string> names;
  std::vector<Py_ssize_t> offsets;
};

// The slots of tables and plans that are looked at here.
struct Layout {
  explicit Layout(PyTypeObject* type) : all(type) {}

  Slots all;
  Py_ssize_t end = all.offset("end"), plan = all.offset("plan"), pinned = all.offset("pinned"),
             window = all.offset("window"), cell = all.offset("cell");
};

inline PyObject*& slot(PyObject* of, Py_ssize_t offset) {
  return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(of) + offset);
}

// The layout of these tables, which are all of one class.
inline const Layout* layout(const py::list& tables) {
  static const Layout* known = nullptr;  // never freed
  for (py::handle table : tables) {
    if (known && Py_TYPE(table.ptr()) == known->all.type) continue;
    if (table.ptr() != PyList_GET_ITEM(tables.ptr(), 0)) throw py::type_error("tables of a class");
    known = new Layout(Py_TYPE(table.ptr()));
  }
  return known;
}

struct Page {
  Int id, start, origin;
};

struct Run {
  explicit Run(PyObject* pages) : pages(pages), size(PyTuple_Size(pages)) {
    if (size < 0) throw py::error_already_set();
  }
  PyObject* item(Py_ssize_t i, Py_ssize_t column) const {
    return checked(PyTuple_GetItem(checked(PyTuple_GetItem(pages, i)), column));
  }
  Int start(Py_ssize_t i) const { return number(item(i, 1)); }
  Page operator[](Py_ssize_t i) const { return {number(item(i, 0)), start(i), number(item(i, 2))}; }

  PyObject* pages;
  Py_ssize_t size;
};

// A table, read where its slots lie.
struct Table {
  PyObject* held(Py_ssize_t offset) const {
    PyObject* value = slot(object, offset);
    if (!value) throw py::value_error("a table with all of its slots");
    return value;
  }
  Int end() const { return number(held(at.end)); }
  PyObject* plan() const { return held(at.plan); }
  Run window() const { return Run(held(at.window)); }

  PyObject* object;
  const Layout& at;
};

// The reach of plans: most tables share one.
class Reach {
 public:
  Int of(PyObject* plan) {
    if (plan != plan_.ptr()) {
      plan_ = py::reinterpret_borrow<py::object>(plan);
      reach_ = plan_.attr("reach").cast<Int>();
    }
    return reach_;
  }

 private:
  py::object plan_;
  Int reach_ = 0;
};

// The same table with another end.
inline py::object with_end(const Table& table, Int end) {
  const Slots& all = table.at.all;
  PyObject* made = checked(all.type->tp_alloc(all.type, 0));
  for (const Py_ssize_t at : all.offsets) {
    PyObject* value =
        at == table.at.end ? checked(PyLong_FromLongLong(end)) : slot(table.object, at);
    if (at != table.at.end) Py_XINCREF(value);
    slot(made, at) = value;
  }
  return py::reinterpret_steal<py::object>(made);
}

}  // namespace headrace::bind
