# SPDX-License-Identifier: Apache-2.0
"""How a step edits page tables: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from .. import _C, interrupts
from .pool import PagePool
from .table import Page, Table

Slot = tuple[int, int, int]
"""Where a token goes: page, slot, and offset from the origin of the page."""

SLOT_BYTES = 24
"""Of a slot in a row of them, int64 [T, 3]."""

Stage = Callable[[Page, int], None]
"""Is told of a page before it goes, and of the position after its last token."""

EPOCH = 1024
"""Window pages share an origin within so many positions: one rotated query serves them all."""


class _Growth(NamedTuple):
    """Tokens lo..hi-1 that go to the end of a run of pages, `room` of them into its last page."""

    run: tuple[Page, ...]
    lo: int
    hi: int
    room: int

    def fresh(self, page_size: int) -> int:
        """How many pages more it takes."""
        return -(-(self.hi - self.lo - self.room) // page_size)


class Edit:
    """Changes to the tables of one pool, all of them or none.

    `extend` and `trim` make new tables and leave the old ones valid; `commit` gives up the pages
    that only the old ones needed, `undo` those that only the new ones have.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._taken: set[int] = set()
        self._retired: list[int] = []
        self._filled: dict[int, int] = {}

    def advance(
        self, tables: Sequence[Table], counts: Sequence[int]
    ) -> tuple[list[Table], np.ndarray]:
        """`extend`, with the slots of all tokens in a row: int64 [T, 3]."""
        where = bytearray(SLOT_BYTES * sum(counts))
        return self.grow(list(tables), list(counts), where), _rows(where)

    def grow(self, tables: list[Table], counts: list[int], where: bytearray) -> list[Table]:
        """`extend`, with the slots of all tokens in a row written to `where`, int64 [T, 3].

        What is most frequent, that all tokens go to the last page of the window, is done for all
        such tables in one compiled call, and before the others.
        """
        pool = self._pool
        grown = _C.grow_tables(tables, counts, pool.filled, self._filled, pool.page_size, where)
        rest = [i for i, one in enumerate(grown) if one is None]
        if rest:
            with interrupts.deferred():
                many = self.extend([tables[i] for i in rest], [counts[i] for i in rest])
            ends, rows = list(accumulate(counts)), _rows(where)
            for i, (table, mine) in zip(rest, many, strict=True):
                grown[i] = table
                rows[ends[i] - counts[i] : ends[i]] = np.reshape(mine, (-1, 3))
        return grown

    def extend(
        self, tables: Sequence[Table], counts: Sequence[int]
    ) -> list[tuple[Table, list[Slot]]]:
        """Room for `counts` more tokens: each new table, and where its tokens go.

        ValueError when the pool has too few pages; then call `undo`.
        """
        plans = [self._claim(table, n) for table, n in zip(tables, counts, strict=True)]
        size = self._pool.page_size
        pages = iter(self.take(sum(g.fresh(size) for growths in plans for g in growths)))
        grown: list[tuple[Table, list[Slot]]] = []
        for table, n, (pinned, window) in zip(tables, counts, plans, strict=True):
            where: list[Slot] = []
            new = replace(
                table,
                end=table.end + n,
                pinned=self._grow(pinned, table.start, pages, where),
                window=self._grow(window, None, pages, where),
                cell=[],
            )
            grown.append((new, where))
        return grown

    def _claim(self, table: Table, n: int) -> tuple[_Growth, _Growth]:
        """Splits n tokens into pinned and window ones and claims the free slots of the tail."""
        end = table.end + n
        border = min(max(table.end, table.start + table.plan.pinned), end)
        return (
            _Growth(table.pinned, table.end, border, self._room(table.pinned, table.end, border)),
            _Growth(table.window, border, end, self._room(table.window, border, end)),
        )

    def _room(self, run: tuple[Page, ...], lo: int, hi: int) -> int:
        """Slots that tokens lo..hi-1 may use in the last page: none if another wrote there."""
        if not run or lo == hi:
            return 0
        page, pool = run[-1], self._pool
        if pool.filled[page.id] != lo - page.start:
            return 0
        room = min(pool.page_size - (lo - page.start), hi - lo)
        self._fill(page, lo + room)
        return room

    def _fill(self, page: Page, stop: int) -> None:
        filled = self._pool.filled
        self._filled.setdefault(page.id, filled[page.id])
        filled[page.id] = stop - page.start

    def _grow(
        self, growth: _Growth, origin: int | None, fresh: Iterator[int], where: list[Slot]
    ) -> tuple[Page, ...]:
        run, at, room = list(growth.run), growth.lo, growth.room
        while at < growth.hi:
            if room == 0:
                run.append(Page(next(fresh), at, at - at % EPOCH if origin is None else origin))
                room = min(self._pool.page_size, growth.hi - at)
                self._fill(run[-1], at + room)
            page = run[-1]
            where += [(page.id, p - page.start, p - page.origin) for p in range(at, at + room)]
            at, room = at + room, 0
        return tuple(run)

    def overdue(self, tables: Sequence[Table]) -> list[int]:
        """Which of them `trim` would change."""
        return _C.overdue_tables(list(tables), self._pool.page_size)

    def let_go(
        self,
        tables: Sequence[Table],
        stages: Sequence[Stage | None] | None = None,
        overdue: Sequence[int] | None = None,
    ) -> list[Table]:
        """`trim` of all that need it, or of those that were `overdue`."""
        trimmed = list(tables)
        for i in self.overdue(tables) if overdue is None else overdue:
            with interrupts.deferred():
                trimmed[i] = self.trim(trimmed[i], None if stages is None else stages[i])
        return trimmed

    def trim(self, table: Table, stage: Stage | None = None) -> Table:
        """Lets go of window pages that no query to come can reach, each staged before.

        A stream keeps as many pages as its window may ever span, so that in the long run it holds a
        constant number.
        """
        window, keep = table.window, table.plan.window_pages(self._pool.page_size)
        alive_from = table.end - table.plan.reach + 1
        dead = 0
        while len(window) - dead > keep and window[dead + 1].start <= alive_from:
            dead += 1
        for page, after in pairwise(window[: dead + 1]):
            if stage is not None:
                stage(page, after.start)
            self.retire([page.id])
        return replace(table, window=window[dead:], cell=[]) if dead else table

    def take(self, count: int) -> list[int]:
        """Pages for a new table. ValueError when the pool has too few; then call `undo`."""
        fresh = self._pool.take(count)
        self._taken.update(fresh)
        return fresh

    def retire(self, pages: Iterable[int]) -> None:
        """Pages that a new table does not have any more."""
        for page in pages:
            if page in self._taken:  # came and went within this edit
                self._taken.remove(page)
                self._filled.pop(page, None)
                self._pool.drop([page])
            else:
                self._retired.append(page)

    def commit(self) -> None:
        """The new tables count; cannot be undone any more."""
        self._pool.drop(self._retired)
        self._forget()

    def undo(self) -> None:
        """The old tables count, and the pool is as it was."""
        for page, before in self._filled.items():
            self._pool.filled[page] = before
        self._pool.drop(self._taken)
        self._forget()

    def _forget(self) -> None:
        self._taken, self._retired, self._filled = set(), [], {}


def _rows(where: bytearray) -> np.ndarray:
    return np.frombuffer(where, np.int64).reshape(-1, 3)
