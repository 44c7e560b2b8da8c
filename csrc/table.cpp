// SPDX-License-Identifier: Apache-2.0
// What every step does to every page table, on Python's own objects, in one call for all streams.
// headrace.memory.edit and headrace.memory.view say what it means, and do what is rare. No bytecode
// runs between two tables, so no Ctrl-C falls there.
#include "table.h"

#include <utility>

namespace headrace::bind {

namespace {

constexpr Py_ssize_t kColumns = 7;
enum Column { kFirst = 1, kCount = 2, kOrder = 5 };

// The numbers of a bytearray that has room for just so many.
template <class T>
T* numbers(py::handle room, Py_ssize_t count) {
  if (!PyByteArray_Check(room.ptr()) ||
      PyByteArray_GET_SIZE(room.ptr()) != count * Py_ssize_t(sizeof(T))) {
    throw py::value_error("a bytearray of as many numbers as there are");
  }
  return reinterpret_cast<T*>(PyByteArray_AS_STRING(room.ptr()));
}

Int sum(const py::list& counts) {
  Int total = 0;
  for (py::handle n : counts) total += number(n.ptr());
  return total;
}

// Of each table to which the next tokens come, the one with them, where all of them fit into the
// last page of its window; None for others, and for those that such a one before them shares its
// last page with. Notes in `before` what `filled` said of these pages. Writes where tokens go into
// int64 [T, 3]: page, slot, offset; nothing for those others.
py::list grow(const py::list& tables, const py::list& counts, py::list filled, py::dict before,
              Int page_size, const py::bytearray& where) {
  py::list made(tables.size());
  Int* row = numbers<Int>(where, 3 * sum(counts));
  std::vector<Int> wanted;  // last pages of those others
  const Layout* at = layout(tables);
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const Table table{tables[i].ptr(), *at};
    const Int n = number(PyList_GetItem(counts.ptr(), i));
    const Run window = table.window();
    py::object grown = py::none();
    if (n > 0 && window.size > 0) {
      const Page page = window[window.size - 1];
      const Int end = table.end(), used = end - page.start;
      PyObject* have = checked(PyList_GetItem(filled.ptr(), page.id));
      if (number(have) == used && used + n <= page_size &&
          std::find(wanted.begin(), wanted.end(), page.id) == wanted.end()) {
        grown = with_end(table, end + n);
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
  return made;
}

// Rows of one table in a view, and how the first and the last page of its window have moved since
// they were made, if they have.
struct Block {
  py::object rows;  // bytes
  Py_ssize_t size;
  Py_ssize_t first = -1;  // row of the oldest page that is seen; -1 when nothing has moved
  Int slot = 0, seen = 0, order = 0, last = 0;
  Int start = 0, queries = -1;  // those that follow when it ends the list of a table, or -1
};

Block whole(PyObject* rows) {
  const Py_ssize_t size = PyBytes_Size(rows);
  if (size < 0) throw py::error_already_set();
  Block block;
  block.rows = py::reinterpret_borrow<py::object>(rows);
  block.size = size / Py_ssize_t(kColumns * sizeof(Int));
  return block;
}

// What the cell of a table holds, when it fits: pinned pages and window that it was made for, rows,
// and how many pages of the window were past then.
bool known(const Table& table, Int oldest, Reach& reach, Block* block) {
  PyObject* cell = table.held(table.at.cell);
  if (!PyList_Check(cell) || PyList_GET_SIZE(cell) != 4) return false;
  const auto held = [&](Py_ssize_t i) { return PyList_GET_ITEM(cell, i); };
  const Run window = table.window();
  if (held(1) != window.pages || held(0) != table.held(table.at.pinned)) return false;
  const Int past = number(held(3)), end = table.end();
  const Int from = oldest - reach.of(table.plan()) + 1;
  const Int begin = window.start(past);
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
// room(T, E, B) gives the bytearrays that all this is written into.
void view(const py::list& tables, const py::list& counts, const py::list& others,
          const py::function& fresh, const py::function& room) {
  const Py_ssize_t streams = tables.size();
  const Layout* at = layout(tables);
  Reach reach;
  std::vector<Block> blocks;
  blocks.reserve(2 * streams);
  Int rows = 0, queries = 0;
  for (Py_ssize_t i = 0; i < streams; ++i) {
    const Table table{tables[i].ptr(), *at};
    const Int n = number(PyList_GetItem(counts.ptr(), i)), start = table.end() - n;
    if (others.size()) {
      blocks.push_back(whole(PyList_GetItem(others.ptr(), i)));
      rows += blocks.back().size;
    }
    Block block;
    if (!known(table, start, reach, &block)) block = whole(fresh(tables[i], start).ptr());
    block.start = start;
    block.queries = n;
    rows += block.size;
    queries += n;
    blocks.push_back(std::move(block));
  }
  const py::tuple made = room(queries, rows, streams);
  Int* row = numbers<Int>(made[0], rows * kColumns);
  std::int32_t* entry_end = numbers<std::int32_t>(made[1], streams + 1);
  std::int32_t* query_end = numbers<std::int32_t>(made[2], streams + 1);
  Int* position = numbers<Int>(made[3], queries);
  *entry_end = *query_end = 0;
  Int entries = 0;
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
    entries += block.size;
    if (block.queries < 0) continue;
    *++entry_end = static_cast<std::int32_t>(entries);
    query_end[1] = static_cast<std::int32_t>(*query_end + block.queries);
    ++query_end;
    for (Int j = 0; j < block.queries; ++j) *position++ = block.start + j;
  }
}

// Numbers of the tables whose window begins with pages that no query to come can reach.
py::list overdue(const py::list& tables, Int page_size) {
  py::list found;
  const Layout* at = layout(tables);
  Reach reach;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const Table table{tables[i].ptr(), *at};
    const Run window = table.window();
    if (window.size < 2) continue;
    const Int its = reach.of(table.plan()), keep = 1 + (its - 1 + page_size - 1) / page_size;
    if (window.size > keep && window.start(1) <= table.end() - its + 1) found.append(py::int_(i));
  }
  return found;
}

}  // namespace

void tables(py::module_& m) {
  m.def("grow_tables", &grow, py::arg("tables"), py::arg("counts"), py::arg("filled"),
        py::arg("before"), py::arg("page_size"), py::arg("where"));
  m.def("view_tables", &view, py::arg("tables"), py::arg("counts"), py::arg("others"),
        py::arg("fresh"), py::arg("room"));
  m.def("overdue_tables", &overdue, py::arg("tables"), py::arg("page_size"));
}

}  // namespace headrace::bind
