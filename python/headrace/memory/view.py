# SPDX-License-Identifier: Apache-2.0
"""Views: what the queries of one step read, all of it integers.

A view is a list of entries per stream, each with the columns below; `headrace.ops.paged_attention`
says what they mean to a query. Positions are logical: the k-th token of a stream has position start
+ k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

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
]

BEFORE = -(2**61)
"""An order before that of every query, however much follows."""


def entries(table: Table, oldest: int, recalled: Sequence[Row] = ()) -> list[Row]:
    """What queries at positions `oldest` and later read of a stream: one row of seven per page.

    Pinned tokens come first, with their cap, then survivors; window tokens follow with their reach,
    cut down to those that the oldest query still sees. recalled: entries between the two; where
    they count as distance (they have a cap), they push the pinned ones back.
    """
    kept, window, alive_from = table.kept, table.window, oldest - table.plan.reach + 1
    if kept is not None:
        alive_from = max(alive_from, kept.since)
    if len(window) > 2 and window[1].start >= alive_from and not recalled:
        pinned, between = _unchanged(table)  # those between are seen whole
        first = _window_row(window[0], window[1].start, alive_from, table)
        last = _window_row(window[-1], table.end, alive_from, table)
        return [*pinned, *first, *between, *last]
    back = sum(row[COUNT] for row in recalled if row[CAP] < UNLIMITED)
    rows = [*_pinned_rows(table, back), *recalled]
    for page, stop in table.window_spans():
        rows += _window_row(page, stop, alive_from, table)
    return rows


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


def _unchanged(table: Table) -> tuple[list[Row], list[Row]]:
    """Rows of the pinned pages and of the window's but the first and the last, which stay the same
    from step to step until a page comes or goes.
    """
    cell = table.cell
    if not (cell and cell[0] is table.pinned and cell[1] is table.window):
        between = []
        for page, stop in list(table.window_spans())[1:-1]:
            between += _window_row(page, stop, page.start, table)
        cell[:] = [table.pinned, table.window, _pinned_rows(table), between]
    return cell[2], cell[3]


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
    by_layer: entries and entry_indptr for each layer, if these differ.
    """

    where: Tensor
    entries: Tensor
    entry_indptr: Tensor
    q_indptr: Tensor
    q_pos: Tensor
    by_layer: tuple[tuple[Tensor, Tensor], ...] = ()

    def lists(self, layer: int) -> tuple[Tensor, Tensor]:
        """Entries and their offsets, as a layer sees them."""
        return self.by_layer[layer] if self.by_layer else (self.entries, self.entry_indptr)

    @staticmethod
    def of(
        wheres: Sequence[list[Slot]],
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
            _table(views, 7).to(device),
            _offsets(views).to(device),
            _offsets(wheres).to(device),
            torch.tensor(positions, dtype=torch.int64).to(device),
            tuple((_table(lists, 7).to(device), _offsets(lists).to(device)) for lists in by_layer),
        )


def _table(lists: Sequence[Sequence[Sequence[int]]], width: int) -> Tensor:
    """All rows of all lists, int64 [rows, width]."""
    numbers = chain.from_iterable(chain.from_iterable(lists))
    count = width * sum(map(len, lists))
    return torch.from_numpy(np.fromiter(numbers, np.int64, count)).view(-1, width)


def _offsets(lists: Sequence[Sequence]) -> Tensor:
    return torch.tensor([0, *accumulate(map(len, lists))], dtype=torch.int32)
