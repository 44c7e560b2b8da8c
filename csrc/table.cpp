// SPDX-License-Identifier: Apache-2.0
// What every step does to every page table, on Python's own objects, in one call for all streams.
// headrace.memory.edit and headrace.memory.view say what it means, and do what is rare. No bytecode
// runs between two tables, so no Ctrl-C falls there.
#include <pybind11/pybind11.h>
#include <structmember.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace headrace::bind {

namespace py = pybind11;

namespace {

using Int = std::int64_t;
constexpr Py_ssize_t kColumns = 7;
enum Column { kFirst = 1, kCount = 2, kOrder = 5 };

PyObject* checked(PyObject* x) {
  if (!x) throw py::error_already_set();
  return x;
}

Int number(PyObject* x) {
  const Int value = PyLong_AsLongLong(checked(x));
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// Names of attributes, made once and never freed.
struct Names {
  PyObject* end = PyUnicode_InternFromString("end");
  PyObject* plan = PyUnicode_InternFromString("plan");
  PyObject* reach = PyUnicode_InternFromString("reach");
  PyObject* pinned = PyUnicode_InternFromString("pinned");
  PyObject* window = PyUnicode_InternFromString("window");
  PyObject* cell = PyUnicode_InternFromString("cell");
  PyObject* slots = PyUnicode_InternFromString("__slots__");
};

const Names& names() {
  static const Names* made = new Names;
  return *made;
}

py::object get(PyObject* of, PyObject* name) {
  return py::reinterpret_steal<py::object>(checked(PyObject_GetAttr(of, name)));
}

Int get_int(PyObject* of, PyObject* name) { return number(get(of, name).ptr()); }

struct Page {
  Int id, start, origin;
};

struct Run {
  explicit Run(PyObject* table) : pages(get(table, names().window)), size(PyTuple_Size(ptr())) {
    if (size < 0) throw py::error_already_set();
  }
  PyObject* ptr() const { return pages.ptr(); }
  PyObject* item(Py_ssize_t i, Py_ssize_t column) const {
    return checked(PyTuple_GetItem(checked(PyTuple_GetItem(ptr(), i)), column));
  }
  Int start(Py_ssize_t i) const { return number(item(i, 1)); }
  Page operator[](Py_ssize_t i) const { return {number(item(i, 0)), start(i), number(item(i, 2))}; }

  py::object pages;
  Py_ssize_t size;
};

// Where the slots of a class lie in its objects, and which of them holds the end.
struct Slots {
  explicit Slots(PyTypeObject* type) : type(type) {
    const py::object all = get(reinterpret_cast<PyObject*>(type), names().slots);
    for (py::handle name : all) {
      const py::object slot = get(reinterpret_cast<PyObject*>(type), name.ptr());
      if (Py_TYPE(slot.ptr()) != &PyMemberDescr_Type) throw py::type_error("a table of slots");
      at.push_back(reinterpret_cast<PyMemberDescrObject*>(slot.ptr())->d_member->offset);
      if (name.equal(py::handle(names().end))) end = at.back();
    }
  }
  static PyObject*& of(PyObject* object, Py_ssize_t offset) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
  }

  PyTypeObject* type;
  std::vector<Py_ssize_t> at;
  Py_ssize_t end = 0;
};

// The same table with another end.
py::object with_end(const Slots& slots, PyObject* table, Int end) {
  if (Py_TYPE(table) != slots.type) throw py::type_error("tables of one class");
  PyObject* made = checked(slots.type->tp_alloc(slots.type, 0));
  for (const Py_ssize_t at : slots.at) {
    PyObject* value = at == slots.end ? checked(PyLong_FromLongLong(end)) : Slots::of(table, at);
    if (at != slots.end) Py_XINCREF(value);
    Slots::of(made, at) = value;
  }
  return py::reinterpret_steal<py::object>(made);
}

// A bytearray of so many numbers, not set.
template <class T>
py::object numbers(Py_ssize_t count, T** data) {
  PyObject* made = checked(PyByteArray_FromStringAndSize(nullptr, count * sizeof(T)));
  *data = reinterpret_cast<T*>(PyByteArray_AS_STRING(made));
  return py::reinterpret_steal<py::object>(made);
}

Int sum(const py::list& counts) {
  Int total = 0;
  for (py::handle n : counts) total += number(n.ptr());
  return total;
}

// Of each table to which the next tokens come, the one with them, where all of them fit into the
// last page of its window; None for others, and for those that such a one before them shares its
// last page with. Notes in `before` what `filled` said of these pages. Also where tokens go, int64
// [T, 3]: page, slot, offset; not set for those others.
py::tuple grow(const py::list& tables, const py::list& counts, py::list filled, py::dict before,
               Int page_size) {
  py::list made(tables.size());
  Int* row;
  const py::object where = numbers(3 * sum(counts), &row);
  std::vector<Int> wanted;  // last pages of those others
  static const Slots* slots = nullptr;
  if (tables.size() && !(slots && slots->type == Py_TYPE(tables[0].ptr()))) {
    slots = new Slots(Py_TYPE(tables[0].ptr()));  // once, and never freed
  }
  for (std::size_t i = 0; i < tables.size(); ++i) {
    PyObject* table = tables[i].ptr();
    const Int n = number(py::object(counts[i]).ptr());
    const Run window(table);
    py::object grown = py::none();
    if (n > 0 && window.size > 0) {
      const Page page = window[window.size - 1];
      const Int end = get_int(table, names().end), used = end - page.start;
      PyObject* have = checked(PyList_GetItem(filled.ptr(), page.id));
      if (number(have) == used && used + n <= page_size &&
          std::find(wanted.begin(), wanted.end(), page.id) == wanted.end()) {
        grown = with_end(*slots, table, end + n);
        checked(PyDict_SetDefault(before.ptr(), window.item(window.size - 1, 0), have));
        filled[page.id] = py::int_(used + n);
        for (Int j = 0; j < n; ++j) {
          row[3 * j] = page.id;
          row[3 * j + 1] = used + j;
          row[3 * j + 2] = end - page.origin + j;
        }
      } else {
        wanted.push_back(page.id);
      }
    }
    PyList_SetItem(made.ptr(), i, grown.release().ptr());
    row += 3 * n;
  }
  return py::make_tuple(made, where);
}

// Rows of one table in a view, and how the first and the last page of its window have moved since
// they were made, if they have.
struct Block {
  py::bytes rows;
  Py_ssize_t size;
  Py_ssize_t first = -1;  // row of the oldest page that is seen; -1 when nothing has moved
  Int slot = 0, seen = 0, order = 0, last = 0;
};

Block whole(PyObject* rows) {
  const Py_ssize_t size = PyBytes_Size(rows);
  if (size < 0) throw py::error_already_set();
  Block block;
  block.rows = py::reinterpret_borrow<py::bytes>(rows);
  block.size = size / Py_ssize_t(kColumns * sizeof(Int));
  return block;
}

// What the cell of a table holds, when it fits: pinned pages and window that it was made for, rows,
// and how many pages of the window were past then.
bool known(PyObject* table, Int oldest, Block* block) {
  const py::object cell = get(table, names().cell);
  if (!PyList_Check(cell.ptr()) || PyList_GET_SIZE(cell.ptr()) != 4) return false;
  const auto held = [&](Py_ssize_t i) { return PyList_GET_ITEM(cell.ptr(), i); };
  const Run window(table);
  if (held(1) != window.ptr() || held(0) != get(table, names().pinned).ptr()) return false;
  const Int past = number(held(3));
  const Int from = oldest - get_int(get(table, names().plan).ptr(), names().reach) + 1;
  const Int begin = window.start(past), end = get_int(table, names().end);
  const bool alone = past + 1 == window.size;
  const Int stop = alone ? end : window.start(past + 1);
  if (from >= stop || (past && from < begin)) return false;  // another page is the oldest seen
  *block = whole(held(2));
  block->first = block->size - (window.size - past);
  block->order = std::max(from, begin);
  block->slot = block->order - begin;
  block->seen = stop - block->order;
  block->last = alone ? block->seen : end - window.start(window.size - 1);
  return true;
}

// Entries of a view int64 [E, 7], where the list of each table ends int32 [B+1] and its queries do,
// and the positions of these int64 [T]: each table ends with its queries. fresh(table, start) makes
// the rows that no cell holds; others: rows that go before those of a table, or none at all.
py::tuple view(const py::list& tables, const py::list& counts, const py::list& others,
               const py::function& fresh) {
  const Py_ssize_t streams = tables.size();
  std::vector<Block> blocks;
  blocks.reserve(2 * streams);
  std::int32_t *entry_end, *query_end;
  Int *position, *row;
  const py::object entry_ends = numbers(streams + 1, &entry_end);
  const py::object query_ends = numbers(streams + 1, &query_end);
  const py::object positions = numbers(sum(counts), &position);
  *entry_end = *query_end = 0;
  Int total = 0;
  for (Py_ssize_t i = 0; i < streams; ++i) {
    PyObject* table = tables[i].ptr();
    const Int n = number(PyList_GetItem(counts.ptr(), i));
    const Int start = get_int(table, names().end) - n;
    if (others.size()) {
      blocks.push_back(whole(PyList_GetItem(others.ptr(), i)));
      total += blocks.back().size;
    }
    Block block;
    if (!known(table, start, &block)) block = whole(fresh(tables[i], start).ptr());
    total += block.size;
    blocks.push_back(block);
    *++entry_end = static_cast<std::int32_t>(total);
    ++query_end;
    *query_end = static_cast<std::int32_t>(query_end[-1] + n);
    for (Int j = 0; j < n; ++j) *position++ = start + j;
  }
  const py::object entries = numbers(total * kColumns, &row);
  for (const Block& block : blocks) {
    const Py_ssize_t words = block.size * kColumns;
    const Int* from = reinterpret_cast<const Int*>(PyBytes_AS_STRING(block.rows.ptr()));
    std::copy(from, from + words, row);
    if (block.first >= 0) {
      Int* oldest = row + block.first * kColumns;
      oldest[kFirst] = block.slot;
      oldest[kCount] = block.seen;
      oldest[kOrder] = block.order;
      row[words - kColumns + kCount] = block.last;
    }
    row += words;
  }
  return py::make_tuple(entries, entry_ends, query_ends, positions);
}

// Numbers of the tables whose window begins with pages that no query to come can reach.
py::list overdue(const py::list& tables, Int page_size) {
  py::list found;
  py::object plan;  // most tables share one
  Int reach = 0, keep = 0;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    PyObject* table = tables[i].ptr();
    const Run window(table);
    if (window.size < 2) continue;
    py::object its = get(table, names().plan);
    if (its.ptr() != plan.ptr()) {
      plan = std::move(its);
      reach = get_int(plan.ptr(), names().reach);
      keep = 1 + (reach - 1 + page_size - 1) / page_size;
    }
    if (window.size > keep && window.start(1) <= get_int(table, names().end) - reach + 1) {
      found.append(py::int_(i));
    }
  }
  return found;
}

}  // namespace

void tables(py::module_& m) {
  m.def("grow_tables", &grow, py::arg("tables"), py::arg("counts"), py::arg("filled"),
        py::arg("before"), py::arg("page_size"));
  m.def("view_tables", &view, py::arg("tables"), py::arg("counts"), py::arg("others"),
        py::arg("fresh"));
  m.def("overdue_tables", &overdue, py::arg("tables"), py::arg("page_size"));
}

}  // namespace headrace::bind
