# SPDX-License-Identifier: Apache-2.0
"""Views: what the queries of one step read, all of it integers.

A view is a list of entries per stream, each with the columns below; `headrace.ops.paged_attention`
says what they mean to a query. Positions are logical: the k-th token of a stream has position start
+ k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from .. import _C
from .edit import Slot
from .regions import UNLIMITED
from .table import Page, Row, Table

PAGE, FIRST, COUNT, ORIGIN, CAP, ORDER, REACH = range(7)

__all__ = [
    "CAP",
    "COUNT",
    "FIRST",
    "ORDER",
    "ORIGIN",
    "PAGE",
    "REACH",
    "UNLIMITED",
    "View",
    "across",
    "entries",
    "packed",
]

BEFORE = -(2**61)
"""An order before that of every query, however much follows."""


def entries(table: Table, oldest: int, recalled: Sequence[Row] = ()) -> list[Row]:
    """What queries at positions `oldest` and later read of a stream: one row of seven per page.

    Pinned tokens come first, with their cap, then survivors; window tokens follow with their reach,
    cut down to those that the oldest query still sees. recalled: entries between the two; where
    they count as distance (they have a cap), they push the pinned ones back.
    """
    alive_from = oldest - table.plan.reach + 1
    if table.kept is not None:
        alive_from = max(alive_from, table.kept.since)
    back = sum(row[COUNT] for row in recalled if row[CAP] < UNLIMITED)
    rows = [*_pinned_rows(table, back), *recalled]
    for page, stop in table.window_spans():
        rows += _window_row(page, stop, alive_from, table)
    return rows if not table.plan.block else [x for row in rows for x in _clamped(row, table)]


def _clamped(row: Row, table: Table) -> Iterator[Row]:
    """The parts of a row that lie in one block each, none of which seems further away than the cap
    lets the first token of its block.
    """
    page, slot, count, origin, _, at, reach = row
    start, block, cap = table.start, table.plan.block, table.plan.cap
    for first in range(at - (at - start) % block, at + count, block):
        lo, hi = max(first, at), min(first + block, at + count)
        yield page, slot + lo - at, hi - lo, origin, cap + first - origin, lo, reach


def _pinned_rows(table: Table, back: int = 0) -> list[Row]:
    """Rows of the pinned pages, pushed `back` by tokens between them and the window."""
    cap = table.plan.cap + back if table.plan.cap < UNLIMITED else UNLIMITED
    rows: list[Row] = [
        (page.id, 0, stop - page.start, page.origin, cap, page.start, UNLIMITED)
        for page, stop in table.pinned_spans()
    ]
    return rows if table.kept is None else [*rows, *table.kept.rows]


def _window_row(page: Page, stop: int, alive_from: int, table: Table) -> list[Row]:
    """The row of a page whose last token is before `stop`; none if all of it is past."""
    first = max(page.start, alive_from)
    if first >= stop:
        return []
    slot, reach = first - page.start, table.plan.reach
    return [(page.id, slot, stop - first, page.origin, UNLIMITED, first, reach)]


def packed(rows: Sequence[Row]) -> bytes:
    """Rows as a view holds them."""
    return np.array(rows, np.int64).tobytes()


def _fresh(table: Table, oldest: int) -> bytes:
    """The entries of a table, kept in its cell for later queries while its pages stay the same.

    Of these only the oldest row that is seen and the last one change.
    """
    rows = entries(table, oldest)
    made = packed(rows)
    window, alive_from = table.window, oldest - table.plan.reach + 1
    past = sum(after.start <= alive_from for after in window[1:])
    if window and table.kept is None and alive_from < table.end and not table.plan.block:
        table.cell[:] = [table.pinned, window, made, past]
    return made


def across(tables: Iterable[Table]) -> list[Row]:
    """What queries of another lane read of these: all that their own next queries will see.

    Nothing of it is later than the queries, and positions of all lanes count on one line.
    """
    rows: list[Row] = []
    order = BEFORE
    for table in tables:
        for page, first, count, origin, *_ in entries(table, oldest=table.end):
            rows.append((page, first, count, origin, UNLIMITED, order, UNLIMITED))
            order += count
    return rows


@dataclass(frozen=True)
class View:
    """The integer arguments of `append` and `paged_attention` for one step of many streams.

    where int64 [T, 3]; entries int64 [E, 7]; entry_indptr, q_indptr int32 [B+1]; q_pos int64 [T].
    by_layer: entries and entry_indptr for each layer, if these differ. Along three axes where is
    [T, 5], entries [E, 11], q_pos [T, 3], and q_order int64 [T] says what comes before what.
    """

    where: Tensor
    entries: Tensor
    entry_indptr: Tensor
    q_indptr: Tensor
    q_pos: Tensor
    by_layer: tuple[tuple[Tensor, Tensor], ...] = ()
    q_order: Tensor | None = None

    def lists(self, layer: int) -> tuple[Tensor, Tensor]:
        """Entries and their offsets, as a layer sees them."""
        return self.by_layer[layer] if self.by_layer else (self.entries, self.entry_indptr)

    @staticmethod
    def after(
        tables: Sequence[Table],
        counts: Sequence[int],
        where: np.ndarray,
        device: torch.device,
        others: Sequence[Sequence[Row]] = (),
        by_layer: Sequence[Sequence[Sequence[Row]]] = (),
    ) -> View:
        """From tables that end with so many tokens each, which are the queries, and their slots.

        others: for each stream, entries of other streams that its queries read before its own.
        by_layer: all entries of each stream for each layer, where layers recalled blocks of their
        own.
        """
        before = [packed(rows) if rows else b"" for rows in others]
        made = _C.view_tables(list(tables), list(counts), before, _fresh)
        kinds = torch.int64, torch.int32, torch.int32, torch.int64
        rows, row_ends, query_ends, positions = (
            torch.frombuffer(x, dtype=kind) if x else torch.empty(0, dtype=kind)
            for x, kind in zip(made, kinds, strict=True)
        )
        layers = tuple(_listed(views, device) for views in by_layer)
        step = View(
            torch.from_numpy(where), rows.view(-1, 7), row_ends, query_ends, positions, layers
        )
        return step if device.type == "cpu" else step.to(device)

    def to(self, device: torch.device) -> View:
        """The same on a device."""
        lists = (self.where, self.entries, self.entry_indptr, self.q_indptr, self.q_pos)
        where, entries, entry_indptr, q_indptr, q_pos = (x.to(device) for x in lists)
        order = None if self.q_order is None else self.q_order.to(device)
        return View(where, entries, entry_indptr, q_indptr, q_pos, self.by_layer, order)

    @staticmethod
    def of(
        wheres: Sequence[Sequence[Slot] | np.ndarray],
        views: Sequence[Sequence[Row]],
        starts: Sequence[int],
        device: torch.device,
        by_layer: Sequence[Sequence[Sequence[Row]]] = (),
    ) -> View:
        """From each stream's slots to write, its entries, and the position of its first query.

        by_layer: entries of each stream for each layer, where layers recalled blocks of their own.
        """
        positions = [
            at for start, rows in zip(starts, wheres, strict=True)
            for at in range(start, start + len(rows))
        ]  # fmt: skip
        return View(
            _table(wheres, 3).to(device),
            *_listed(views, device),
            _offsets(wheres).to(device),
            torch.tensor(positions, dtype=torch.int64).to(device),
            tuple(_listed(views, device) for views in by_layer),
        )


def _listed(views: Sequence[Sequence[Row]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Entries and entry_indptr from the entries of each stream."""
    return _table(views, 7).to(device), _offsets(views).to(device)


def _table(lists: Sequence[Sequence[Sequence[int]] | np.ndarray], width: int) -> Tensor:
    """All rows of all lists, int64 [rows, width]."""
    numbers = chain.from_iterable(chain.from_iterable(lists))
    count = width * sum(map(len, lists))
    return torch.from_numpy(np.fromiter(numbers, np.int64, count)).view(-1, width)


def _offsets(lists: Sequence[Sequence | np.ndarray]) -> Tensor:
    return torch.tensor([0, *accumulate(map(len, lists))], dtype=torch.int32)
