# SPDX-License-Identifier: Apache-2.0
"""Page tables: which pages a stream reads, and who holds them.

A table never changes; a step makes a new one. To remember a moment of a stream (a mark) or to start
another from it (a fork) is therefore to hold the same table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from .pool import PagePool
from .regions import Plan

if TYPE_CHECKING:
    from .fold import Folded
    from .kept import Kept
    from .placed import Placed

Row = Sequence[int]
"""An entry of a view: what the columns of `headrace.memory.view` say."""


class Page(NamedTuple):
    """A page as its holders see it: slot i holds the token at logical position start + i."""

    id: int
    start: int
    origin: int


@dataclass(frozen=True, slots=True)
class Table:
    """The pages of a stream whose tokens have positions start..end-1, held by `plan`.

    pinned: pages of the first tokens, about the origin `start`. window: the run of pages of the
    others, each ending where the next begins, the last one at `end`. cell: where a view keeps what
    it made of these pages; tables made of this one share it. kept: the tokens alive one by one,
    where regions choose them. folded: what became of those that left the window, where a region
    folds them. placed: where its tokens are, where they are so along three axes.
    """

    start: int
    end: int
    plan: Plan
    pinned: tuple[Page, ...] = ()
    window: tuple[Page, ...] = ()
    cell: list[Any] = field(default_factory=list, compare=False, repr=False)
    kept: Kept | None = field(default=None, compare=False, repr=False)
    folded: Folded | None = field(default=None, compare=False, repr=False)
    placed: Placed | None = field(default=None, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens read so far, alive or not."""
        return self.end - self.start

    @property
    def alive(self) -> int:
        """Tokens that the next query sees."""
        if self.kept is not None:
            return len(self.kept.tokens) + self.end - self.kept.upto
        return self.plan.alive(self.tokens)

    @property
    def tail(self) -> Page | None:
        """The page written last."""
        return (self.pinned + self.window)[-1] if self.pinned or self.window else None

    @property
    def page_ids(self) -> list[int]:
        """Ids of all its pages, pinned ones and those of survivors first."""
        ids = [page.id for page in self.pinned + self.window]
        return ids if self.kept is None else list(dict.fromkeys([*self.kept.pages, *ids]))

    def pinned_spans(self) -> Iterator[tuple[Page, int]]:
        """Pinned pages with the position after the last token of each."""
        return _spans(self.pinned, min(self.end, self.start + self.plan.pinned))

    def window_spans(self) -> Iterator[tuple[Page, int]]:
        """Window pages with the position after the last token of each."""
        return _spans(self.window, self.end)


def _spans(run: tuple[Page, ...], end: int) -> Iterator[tuple[Page, int]]:
    for page, after in pairwise(run):
        yield page, after.start
    if run:
        yield run[-1], end


class Lease:
    """Holds the pages of a table, for a stream or for a mark, until released or forgotten."""

    __slots__ = ("_pool", "released", "table")

    def __init__(self, pool: PagePool, table: Table) -> None:
        self._pool: PagePool | None = pool
        self.released = False
        self.table = table
        pool.hold(table.page_ids)

    def share(self) -> Lease:
        """Another lease on the same table."""
        assert self._pool is not None
        return Lease(self._pool, self.table)

    def rewind(self, to: Lease) -> None:
        """Goes back to the table of another lease.

        The slots that follow in its last page are free again if these two leases are the only
        holders; if not, the next token begins a page.
        """
        pool = self._pool
        assert pool is not None
        table, left = to.table, self.table
        pool.hold(table.page_ids)
        self.table = table
        pool.drop(left.page_ids)
        tail = table.tail
        if tail and pool.holders(tail.id) == 2:
            pool.filled[tail.id] = table.end - tail.start

    def release(self) -> None:
        """Lets the pages go. Releasing twice is fine."""
        pool, self._pool = self._pool, None
        self.released = True
        if pool is not None:
            pool.drop(self.table.page_ids)

    def __del__(self) -> None:
        self.release()
