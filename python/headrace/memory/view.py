# SPDX-License-Identifier: Apache-2.0
"""Views: what the queries of one step read, all of it integers.

A view is a list of entries per stream, each with the columns below; `headrace.ops.paged_attention`
says what they mean to a query. Positions are logical: the k-th token of a stream has position start
+ k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .edit import Slot
from .regions import UNLIMITED
from .table import Table

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


def entries(table: Table, oldest: int, recalled: Sequence[list[int]] = ()) -> list[list[int]]:
    """What queries at positions `oldest` and later read of a stream: one row of seven per page.

    Pinned tokens come first, with their cap; window tokens follow with their reach, cut down to
    those that the oldest query still sees. recalled: entries between the two; where they count as
    distance (they have a cap), they push the pinned ones back.
    """
    plan = table.plan
    back = sum(row[COUNT] for row in recalled if row[CAP] < UNLIMITED)
    cap = plan.cap + back if plan.cap < UNLIMITED else UNLIMITED
    rows = [
        [page.id, 0, stop - page.start, page.origin, cap, page.start, UNLIMITED]
        for page, stop in table.pinned_spans()
    ]
    rows += recalled
    alive_from = oldest - plan.reach + 1
    for page, stop in table.window_spans():
        first = max(page.start, alive_from)
        if first < stop:
            slot = first - page.start
            rows.append([page.id, slot, stop - first, page.origin, UNLIMITED, first, plan.reach])
    return rows


def across(tables: Iterable[Table]) -> list[list[int]]:
    """What queries of another lane read of these: all that their own next queries will see.

    Nothing of it is later than the queries, and positions of all lanes count on one line.
    """
    rows = [row for table in tables for row in entries(table, oldest=table.end)]
    order = BEFORE
    for row in rows:
        row[CAP], row[ORDER], row[REACH] = UNLIMITED, order, UNLIMITED
        order += row[COUNT]
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
        views: Sequence[list[list[int]]],
        starts: Sequence[int],
        device: torch.device,
        by_layer: Sequence[Sequence[list[list[int]]]] = (),
    ) -> View:
        """From each stream's slots to write, its entries, and the position of its first query.

        by_layer: entries of each stream for each layer, where layers recalled blocks of their own.
        """
        where = [row for rows in wheres for row in rows]
        positions = [
            start + i for start, rows in zip(starts, wheres, strict=True) for i in range(len(rows))
        ]
        return View(
            torch.tensor(where, dtype=torch.int64).view(-1, 3).to(device),
            _rows(views).to(device),
            _offsets(views).to(device),
            _offsets(wheres).to(device),
            torch.tensor(positions, dtype=torch.int64).to(device),
            tuple((_rows(lists).to(device), _offsets(lists).to(device)) for lists in by_layer),
        )


def _rows(lists: Sequence[list[list[int]]]) -> Tensor:
    flat = [row for rows in lists for row in rows]
    return torch.tensor(flat, dtype=torch.int64).view(-1, 7)


def _offsets(lists: Sequence[list]) -> Tensor:
    return torch.tensor([0, *map(len, lists)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
