# SPDX-License-Identifier: Apache-2.0
"""Views: what the queries of one step read, all of it integers.

A view is a list of entries per stream, each with the columns below; `headrace.ops.paged_attention`
says what they mean to a query. Positions are logical: the k-th token of a stream has position start
+ k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from .. import _C
from .edit import SLOT_BYTES, Slot
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
    "Sheet",
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
    cut down to those that the oldest query still sees. recalled: entries between the two, but where
    they are older than what is pinned, as in a stream opened again; those that count as distance
    (they have a cap) push the pinned ones back.
    """
    alive_from = oldest - table.plan.reach + 1
    if table.kept is not None:
        alive_from = max(alive_from, table.kept.since)
    back = sum(row[COUNT] for row in recalled if row[CAP] < UNLIMITED)
    rows = [*_pinned_rows(table, back), *recalled]
    if recalled:
        rows.sort(key=itemgetter(ORDER))
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
    max_rows: of any stream, where a device is to know it.
    """

    where: Tensor
    entries: Tensor
    entry_indptr: Tensor
    q_indptr: Tensor
    q_pos: Tensor
    by_layer: tuple[tuple[Tensor, Tensor], ...] = ()
    q_order: Tensor | None = None
    max_rows: int | None = None

    def lists(self, layer: int) -> tuple[Tensor, Tensor]:
        """Entries and their offsets, as a layer sees them."""
        return self.by_layer[layer] if self.by_layer else (self.entries, self.entry_indptr)

    @staticmethod
    def after(
        tables: list[Table],
        counts: list[int],
        sheet: Sheet,
        others: Sequence[Sequence[Row]] = (),
        by_layer: Sequence[Sequence[Sequence[Row]]] = (),
    ) -> View:
        """From tables that end with so many tokens each, which are the queries, on a sheet that
        has their slots; on its device.

        others: for each stream, entries of other streams that its queries read before its own.
        by_layer: all entries of each stream for each layer, where layers recalled blocks of their
        own.
        """
        before = [packed(rows) if rows else b"" for rows in others]
        _C.view_tables(tables, counts, before, _fresh, sheet.room)
        step = sheet.view
        if by_layer:
            layers = (_listed(views, sheet.device) for views in by_layer)
            step = replace(step, by_layer=tuple(layers))
        if sheet.host:
            return step
        return replace(step.to(sheet.device), max_rows=max(counts, default=0))

    def to(self, device: torch.device) -> View:
        """The same on a device."""
        lists = (self.where, self.entries, self.entry_indptr, self.q_indptr, self.q_pos)
        where, entries, entry_indptr, q_indptr, q_pos = (x.to(device) for x in lists)
        order = None if self.q_order is None else self.q_order.to(device)
        moved = (where, entries, entry_indptr, q_indptr, q_pos)
        return View(*moved, self.by_layer, order, self.max_rows)

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
            max_rows=max(map(len, wheres), default=0),
        )


class Sheet:
    """What views for a device are written on. The next of as many rows is written over the last,
    for small tensors take longer to make than to fill: whoever reads a view is done before that.

    host: whether the device is the CPU. view: the last one, on the CPU.
    """

    __slots__ = ("_room", "_sizes", "_where", "device", "host", "view")
    view: View

    def __init__(self, device: torch.device) -> None:
        self.device, self.host = device, device.type == "cpu"
        self._where = bytearray()
        self._sizes: tuple[int, int, int] | None = None
        self._room: tuple[bytearray, ...]

    def slots(self, tokens: int) -> bytearray:
        """Room for the slots of so many tokens, for `Edit.grow`: before all else."""
        if len(self._where) != SLOT_BYTES * tokens:
            self._where, self._sizes = bytearray(SLOT_BYTES * tokens), None
        return self._where

    def room(self, tokens: int, entries: int, streams: int) -> tuple[bytearray, ...]:
        """Room for entries, entry_indptr, q_indptr and q_pos."""
        if self._sizes != (tokens, entries, streams):
            sizes = 56 * entries, 4 * (streams + 1), 4 * (streams + 1), 8 * tokens
            rows, row_ends, query_ends, positions = self._room = tuple(map(bytearray, sizes))
            self.view = View(
                _tensor(self._where, torch.int64).view(-1, 3),
                _tensor(rows, torch.int64).view(-1, 7),
                _tensor(row_ends, torch.int32),
                _tensor(query_ends, torch.int32),
                _tensor(positions, torch.int64),
            )
            self._sizes = tokens, entries, streams
        return self._room


def _tensor(room: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(room, dtype=dtype) if room else torch.empty(0, dtype=dtype)


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
