# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch as streams over one page pool that grows with them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import audit
from ...errors import bad_value
from ...memory import UNLIMITED, Edit, Lease, Page, PagePool, Plan, Recalled, Table, cut, view
from .far import Far


class Part(NamedTuple):
    """What a row does in a piece of a forward: `at` of its tokens came before in this forward,
    where its own go, the entries that they read (far: for each layer, if those differ), and the
    position of the first.
    """

    at: int
    where: np.ndarray  # int64 [n, 3]
    entries: list[view.Row]
    start: int
    far: list[list[view.Row]]


SLACK = 64
"""Tokens by which any row may go back at any time: so much more than its window it holds."""


class GrowingPool(PagePool):
    """A pool that takes more memory when pages run out: by half, but at once no more than what
    its users need in the long run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.users: weakref.WeakSet[Rows] = weakref.WeakSet()

    def take(self, count: int) -> list[int]:
        short = count - self.free_pages
        if short > 0:
            room = sum(rows.bound for rows in self.users) - self.pages
            with torch.inference_mode(False), torch.no_grad():  # the pages outlive the step
                self._grow(max(short, min(max(self.pages // 2, 1), room)))
        return super().take(count)

    def _grow(self, more: int) -> None:
        for name in ("k", "v", "k_scale", "v_scale"):
            old = getattr(self, name)
            if old is not None:
                new = old.new_empty(old.shape[0], old.shape[1] + more, *old.shape[2:])
                new[:, : old.shape[1]] = old
                setattr(self, name, new)
        self._show_layers()
        pages = self.pages
        self.filled += [0] * more
        self._holders += [0] * more
        self._free += range(pages, pages + more)  # the highest ids: still a heap
        audit.owns(self.k, self)


class Rows:
    """Page tables of every row of a batch, changed together or not at all.

    far: the archive that their pages go to, or None. recalled: what each row sees of it.
    """

    def __init__(
        self, pool: GrowingPool, plan: Plan, count: int, chunk: int, far: Far | None = None
    ) -> None:
        self.pool, self.plan, self.chunk, self.far = pool, plan, chunk, far
        self.shelves = [far.store.shelf() for _ in range(count)] if far else []
        self.recalled: list[Recalled | None] = [None] * count
        self._leaving: list[list[tuple[int, Tensor]]] = []
        self._loose = replace(plan, reach=min(plan.reach + SLACK, UNLIMITED))
        self.leases = [Lease(pool, Table(0, 0, plan)) for _ in range(count)]
        self._edit = Edit(pool)
        self._next: list[Table] = []
        self._held: list[int] = []
        pool.users.add(self)

    def __len__(self) -> int:
        return len(self.leases)

    @property
    def bound(self) -> int:
        """So many pages all rows need at most, while tokens come in chunks."""
        if self.plan.reach >= UNLIMITED:
            return UNLIMITED
        size = self.pool.page_size
        each = self.plan.pinned_pages(size) + 2 * self._loose.window_pages(size)
        return len(self) * (each + -(-self.chunk // size) + 1)

    def read(
        self, counts: Sequence[int], places: Sequence[np.ndarray] | None = None
    ) -> list[list[Part]]:
        """Room for `counts` tokens, one count per row, in pieces of up to `chunk` tokens a row:
        what each row does in each. Then `commit` or `undo`. places: for each row int64 [n, 3], its
        tokens' positions where these have three axes.
        """
        self.undo()
        tables = [lease.table for lease in self.leases]
        pieces: list[list[Part]] = []
        for at in range(0, max(counts, default=0), self.chunk):
            sizes = [max(0, min(self.chunk, n - at)) for n in counts]
            starts = [table.end for table in tables]
            grown, where = self._edit.advance(tables, sizes)
            wheres = np.split(where, list(accumulate(sizes))[:-1])
            if self.far and places is not None:
                for slots, place in zip(wheres, places, strict=True):
                    self.far.place(self.pool, slots, place[at : at + len(slots)])
            if audit.on:  # it looks at pages when they are used, not when that is planned
                named = [page for table in grown for page in table.page_ids]
                self.pool.hold(named)
                self._held += named
            pieces.append(
                [
                    Part(min(at, n), slots, *self._entries(b, table, start, len(slots) > 0))
                    for b, (n, table, slots, start) in enumerate(
                        zip(counts, grown, wheres, starts, strict=True)
                    )
                ]
            )
            self._leaving.append([])
            tables = [self._trim(b, table) for b, table in enumerate(grown)]
        self._next = tables
        return pieces

    def _entries(
        self, row: int, table: Table, start: int, reads: bool
    ) -> tuple[list[view.Row], int, list[list[view.Row]]]:
        if not reads:
            return [], start, []
        recalled = self.recalled[row]
        far = [view.entries(table, start, rows) for rows in recalled.rows] if recalled else []
        return view.entries(table, start), start, far

    def _trim(self, row: int, table: Table) -> Table:
        def stage(page: Page, stop: int) -> None:  # copied later, layer by layer: not written yet
            assert self.far is not None
            turned = self.far.turned(page.id, stop - page.start)
            self._leaving[-1].append((page.id, self.shelves[row].promise(page, stop, turned)))

        trimmed = self._edit.trim(replace(table, plan=self._loose), stage if self.far else None)
        return replace(trimmed, plan=self.plan)

    def leave(self, piece: int, layer: int) -> None:
        """A layer has read a piece: keeps what the next may write over."""
        for page, block in self._leaving[piece]:
            assert self.far is not None
            layout = self.far.store.tiers.layout
            layout.pack(self.pool, page, block, slice(layer, layer + 1))

    def commit(self) -> None:
        """What was read counts."""
        for lease, table in zip(self.leases, self._next, strict=True):
            lease.table = table
        self._edit.commit()
        with torch.inference_mode(False):
            for shelf in self.shelves:
                shelf.commit()
        self._forget()

    def undo(self) -> None:
        """The rows are what they were before `read`."""
        self._edit.undo()
        for shelf in self.shelves:
            shelf.undo()
        self._forget()

    def _forget(self) -> None:
        self.pool.drop(self._held)
        self._next, self._held, self._leaving = [], [], []

    def cut(self, counts: Sequence[int]) -> None:
        """Forgets the last `counts` tokens of the rows. ValueError, and nothing, when too many."""
        tables = []
        for lease, n in zip(self.leases, counts, strict=True):
            table = cut(lease.table, lease.table.tokens - n) if n <= lease.table.tokens else None
            if table is None:
                expected = f"at least the last {SLACK} tokens to go back by"
                raise bad_value("crop", "tokens_to_remove", expected, n, "older pages are gone")
            tables.append(table)
        for lease, table in zip(self.leases, tables, strict=True):
            to = Lease(self.pool, table)
            lease.rewind(to)
            to.release()
        self.forget()

    def forget(self) -> None:
        """No row sees anything of its archive."""
        for recalled in self.recalled:
            if recalled is not None:
                recalled.release()
        self.recalled = [None] * len(self)

    def pick(self, rows: Sequence[int], pool_rows: Rows | None = None) -> None:
        """Row i goes on as row rows[i] was; full pages are shared, the last one is copied."""
        source = self if pool_rows is None else pool_rows
        picked = [source.leases[i].share() for i in rows]
        shelves = [source.shelves[i].fork() for i in rows] if self.far else []
        shared = [r if r is None else r.share() for r in (source.recalled[i] for i in rows)]
        self.forget()
        for lease in self.leases:
            lease.release()
        for shelf in self.shelves:
            shelf.close()
        self.leases, self.shelves, self.recalled = picked, shelves, shared
        seen = set() if pool_rows is None else {_tail(lease) for lease in source.leases}
        for lease in self.leases:
            if _tail(lease) in seen:
                self._own_tail(lease)
            seen.add(_tail(lease))

    def _own_tail(self, lease: Lease) -> None:
        table, pool = lease.table, self.pool
        tail = table.tail
        if tail is None or table.end - tail.start >= pool.page_size:
            return
        fresh = pool.take(1)
        for x in (pool.k, pool.v, pool.k_scale, pool.v_scale):
            if x is not None:
                x[:, fresh[0]] = x[:, tail.id]
        if self.far is not None:
            self.far.copy(tail.id, fresh[0])
        pool.filled[fresh[0]] = table.end - tail.start
        mine = tail._replace(id=fresh[0])
        if table.window:
            table = replace(table, window=(*table.window[:-1], mine))
        else:
            table = replace(table, pinned=(*table.pinned[:-1], mine))
        pool.drop([tail.id])
        lease.table = table

    def release(self) -> None:
        self.forget()
        for lease in self.leases:
            lease.release()
        for shelf in self.shelves:
            shelf.close()


def _tail(lease: Lease) -> int:
    tail = lease.table.tail
    return -1 if tail is None else tail.id


def narrowed(entries: list[view.Row], start: int, sliding: int | None) -> list[view.Row]:
    """The entries as a layer reads them whose queries see only `sliding` tokens back."""
    if sliding is None:
        return entries
    alive_from = start - sliding + 1
    return [
        [*row[: view.REACH], min(row[view.REACH], sliding)]
        for row in entries
        if row[view.ORDER] + row[view.COUNT] > alive_from
    ]


def gather(x: Tensor, rows: Tensor | None) -> Tensor:
    """Tokens [T, H, D] of x [B, H, L, D]: all of them, or those numbered b * L + i in `rows`."""
    flat = x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])
    return flat if rows is None else flat[rows]
