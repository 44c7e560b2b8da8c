# SPDX-License-Identifier: Apache-2.0
"""Recall: which archived blocks a question needs, and how a step sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .dial import Masses, masses
from .regions import UNLIMITED
from .segment import Fault
from .shelf import Shelf
from .summary import Index, unrotated
from .table import Table
from .view import CAP, COUNT, FIRST, ORDER, ORIGIN, PAGE, REACH


@dataclass(frozen=True)
class Asked:
    """What a question asked in one layer: q [W, Hq, D], not rotated, and lse [W, Hq] of what it saw
    without the archive; at: position of its first token.
    """

    q: Tensor
    lse: Tensor
    at: int


@dataclass(frozen=True)
class Picked:
    """What a layer sees of a shelf: rows of its index, ascending, and of their tokens those at
    these positions (int64, ascending), or all for None.
    """

    rows: np.ndarray
    tokens: np.ndarray | None = None


Choose = Callable[[Shelf, int, "Asked"], "Picked | np.ndarray"]
"""(shelf, layer, what it asks) -> what that layer sees."""


@dataclass(frozen=True)
class Told:
    """What a recall by mass says of a layer's softmax, of the query and head that it serves least.

    captured: the share that it sees, as estimated; missed: it misses at most this share, with the
    chance `sure`: 1 where that is proven for every key. unlike: beside this share of the pages
    left out, which may hold more than any that was looked at (see `Sampled`); 0 where proven.
    """

    captured: float = 1.0
    missed: float = 0.0
    sure: float = 1.0
    unlike: float = 0.0


class Recalled:
    """Blocks in near pages, and the pages of the window that no query sees any more, held until
    released.

    By layer: rows, entries of a view; tokens, how many they are; spans, which; blocks; and if they
    were recalled by mass `told`, or of that captured, missed, sure and unlike alone (see `Told`).
    faults: what was damaged and left out.
    """

    def __init__(
        self,
        shelf: Shelf,
        table: Table,
        chosen: Sequence[np.ndarray],
        in_cache: bool,
        told: Sequence[Told] = (),
        tail: list[list[int]] | None = None,
        before: int | None = None,
    ) -> None:
        """chosen[layer]: rows of the shelf's index, ascending; more layers with `take`. ValueError
        when the near pages are too few: then nothing was done.

        tail: entries seen besides, instead of what is leaving the window. before: a position right
        before which all stand in a row, in the order of their time.
        """
        self._shelf, self._tiers, self._pool = shelf, shelf.store.near(), shelf.store.pool
        self._released = False
        self._reach = table.plan.reach if in_cache else None
        self._before = before
        self.told = list(told)
        self.faults: list[Fault] = []
        self.rows: list[list[list[int]]] = []
        self.blocks: list[list[int]] = []
        self._chosen: set[int] = set()
        self._tail = _out_of_reach(table) if tail is None else tail
        self._held = [row[PAGE] for row in self._tail]
        self._pool.hold(self._held)
        try:
            wanted = {n: shelf.index.blocks[rows].tolist() for n, rows in enumerate(chosen)}
            fetched = self._tiers.fetch_layers(wanted)
            for layer, rows in enumerate(chosen):
                self._see(Picked(rows), wanted[layer], *fetched[layer])
        except BaseException:
            self.release()
            raise
        self.settle()

    def take(self, picked: Picked) -> list[list[int]]:
        """What the next layer sees; its entries."""
        blocks = self._shelf.index.blocks[picked.rows].tolist()
        return self._see(picked, blocks, *self._tiers.fetch(blocks, len(self.rows)))

    def _see(
        self, picked: Picked, blocks: list[int], pages: list[int], faults: list[Fault]
    ) -> list[list[int]]:
        index, at = self._shelf.index, picked.rows
        facts = zip(pages, index.starts[at], index.origins[at], index.counts[at], strict=True)
        self.faults += faults
        self._chosen.update(blocks)
        self.blocks.append([b for b, page in zip(blocks, pages, strict=True) if page >= 0])
        rows = [
            [page, 0, int(count), int(origin), UNLIMITED, int(start), UNLIMITED]
            for page, start, origin, count in facts
            if page >= 0
        ]
        if picked.tokens is not None:
            rows = [run for row in rows for run in runs(row, picked.tokens)]
        rows += [list(row) for row in self._tail]
        if self._before is not None:
            rows = right_before(sorted(rows, key=lambda row: row[ORDER]), self._before)
        elif self._reach is not None:
            rows = in_a_row(rows, self._reach)
        self.rows.append(rows)
        return rows

    def settle(self) -> None:
        """All layers have what they see; what turned out damaged is not found again."""
        self._shelf.lose([b for b in sorted(self._chosen) if self._tiers.gone(b)])
        self.tokens = [sum(row[COUNT] for row in rows) for rows in self.rows]

    @property
    def captured(self) -> list[float]:
        """Share of the softmax that is seen, as estimated, 0 to 1, by layer; see `Told`."""
        return [told.captured for told in self.told]

    @property
    def missed(self) -> list[float]:
        """Largest share of the softmax that is not seen, 0 to 1, by layer."""
        return [told.missed for told in self.told]

    @property
    def sure(self) -> list[float]:
        """Chance with which `missed` holds, by layer; 1 where that is proven."""
        return [told.sure for told in self.told]

    @property
    def unlike(self) -> list[float]:
        """Share of the pages left out that may hold more than any looked at, by layer."""
        return [told.unlike for told in self.told]

    @property
    def spans(self) -> list[list[tuple[int, int]]]:
        """By layer the positions, first and after the last, of the tokens of each entry."""
        return [[(row[ORDER], row[ORDER] + row[COUNT]) for row in rows] for rows in self.rows]

    def share(self) -> Recalled:
        """Another hold on the same."""
        made = object.__new__(Recalled)
        made.__dict__ |= self.__dict__
        self._pool.hold(self._held)
        for layer, blocks in enumerate(self.blocks):
            self._tiers.pin(blocks, layer)
        return made

    def release(self) -> None:
        """Its pages may hold others now. Releasing twice is fine."""
        if self._released:
            return
        self._released = True
        self._pool.drop(self._held)
        for layer, blocks in enumerate(self.blocks):
            self._tiers.unpin(blocks, layer)

    def __del__(self) -> None:
        self.release()


def in_a_row(rows: list[list[int]], reach: int) -> list[list[int]]:
    """Entries as if their tokens stood one after the other, right before a full window (ReKV)."""
    after = reach - 1
    for row in reversed(rows):
        after += row[COUNT]
        row[CAP] = after + row[ORDER] - row[ORIGIN]  # how far its first key was turned
    return rows


def right_before(rows: list[list[int]], at: int) -> list[list[int]]:
    """Entries turned so that their tokens stand one after the other, the last right before `at`."""
    for row in reversed(rows):
        at -= row[COUNT]
        row[ORIGIN] = at - (row[ORDER] - row[ORIGIN])  # its first key was turned by the difference
    return rows


def runs(row: list[int], tokens: np.ndarray) -> Iterator[list[int]]:
    """Of an entry the parts whose tokens are at these positions, ascending."""
    first, stop = row[ORDER], row[ORDER] + row[COUNT]
    mine = tokens[np.searchsorted(tokens, first) : np.searchsorted(tokens, stop)]
    for run in np.split(mine, np.flatnonzero(np.diff(mine) > 1) + 1):
        if len(run):
            slot = row[FIRST] + int(run[0]) - first
            yield [row[PAGE], slot, len(run), row[ORIGIN], row[CAP], int(run[0]), row[REACH]]


def by_score(shelf: Shelf, layer: int, asked: Asked, top: int) -> np.ndarray:
    """The `top` blocks whose mean key the mean query of the question likes best, all heads together
    (ReKV; Di et al., 2025).
    """
    keys = shelf.index.rows("mean", layer)
    if not keys.shape[1] or not top:
        return np.empty(0, np.int64)
    q = asked.q.float().mean(0)[None, :, None].contiguous()
    score = ops.block_score(q, keys[None], heads="sum")
    picked, count = ops.select(score.reshape(-1), "top_k", k=min(top, keys.shape[1]))
    return picked[: int(count)].numpy().astype(np.int64)


def bounds(
    shelf: Shelf, layer: int, asked: Asked, reach: int | None, inv_freq: Tensor | None
) -> Masses:
    """Log bounds [W * Hq, blocks] of the mass of every block, as the queries would see it."""
    index = shelf.index
    if index.kind != "bounds":
        raise bad_value("recall", "mass", 'an Archive with index "bounds"', repr(index.kind))
    dim = asked.q.shape[-1]
    centre, low, high, spread = (
        index.rows(name, layer) for name in ("centre", "low", "high", "spread")
    )
    counts, scale = torch.from_numpy(index.counts), dim**-0.5
    if inv_freq is None or not len(index):
        return masses(asked.q, centre, low, high, spread, counts, scale)
    values, groups = _grouped(_shift(index, reach))
    q = _seen_from(asked, values, reach, inv_freq)
    return masses(q, centre, low, high, spread, counts, scale, groups)


def _shift(index: Index, reach: int | None) -> np.ndarray:
    """What a query's distance to the origin of each block is counted from: its own position less
    this, or this itself where a block stands right before a window."""
    if reach is None:
        return index.origins
    return reach - 1 + index.counts + index.starts - index.origins


def _grouped(keys: np.ndarray) -> tuple[Tensor, Tensor]:
    """The values among integers [n], int64 [S], and where each is, int32 [S, most], -1 for none."""
    values, which, many = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(which, kind="stable")
    column = np.arange(len(keys)) - np.repeat(np.cumsum(many) - many, many)
    groups = np.full((len(values), many.max()), -1, np.int32)
    groups[which[order], column] = order
    return torch.from_numpy(values), torch.from_numpy(groups)


def _seen_from(asked: Asked, places: Tensor, reach: int | None, inv_freq: Tensor | None) -> Tensor:
    """Queries [S, W, Hq, D], turned to places int64 [S] (see `_shift`)."""
    w = len(asked.q)
    steps = torch.arange(asked.at, asked.at + w) - places[:, None]
    steps = steps if reach is None else places[:, None].expand(-1, w)
    q = asked.q.float().expand(len(places), *asked.q.shape)
    return turned(q.flatten(0, 1), steps.flatten(), inv_freq).view(q.shape)


def turned(q: Tensor, steps: Tensor, inv_freq: Tensor | None) -> Tensor:
    """q [W, H, D] turned by steps [W], as keys are."""
    if inv_freq is None:
        return q
    half = inv_freq.numel()
    angle = steps[:, None, None] * inv_freq.cpu()
    cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
    a, b = q[..., :half], q[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, q[..., 2 * half :]], -1)


def tokens_of(shelf: Shelf, row: int, layer: int) -> tuple[Tensor, Tensor]:
    """Keys, before their rotation, and values of an archived block: fp32 [Hkv, n, D] each.

    Errors as `stored`.
    """
    k, v = stored(shelf, row, layer)
    inv_freq = None if shelf.store.inv_freq is None else shelf.store.inv_freq.cpu()
    first = int(shelf.index.starts[row] - shelf.index.origins[row])
    return unrotated(k, first, inv_freq), v


def stored(shelf: Shelf, row: int, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values of an archived block as they are stored, about its origin: fp32 [Hkv, n, D].

    OSError when it is damaged or gone. What only a disk has comes through the near pages.
    """
    store, index = shelf.store, shelf.index
    block, count = int(index.blocks[row]), int(index.counts[row])
    tiers = store.tiers
    host = tiers.place(block).host
    if host >= 0:
        layout = tiers.layout
        pieces = layout.decoded(layout.split(tiers.host[host][layer]))
        found = {name: x.float() for name, x in pieces.items()}
        scaled = layout.codec == "same"
    else:
        (page,), faults = store.near().fetch([block], layer)
        if page < 0:
            raise OSError(f"archive: {faults[0] if faults else 'a block that is gone'}")
        pool, scaled = store.pool, True
        names = ("k", "v", *(("k_scale", "v_scale") if pool.k_scale is not None else ()))
        found = {name: getattr(pool, name)[layer, page].float().cpu().clone() for name in names}
        tiers.unpin([block], layer)
    k, v = found["k"].mT, found["v"]
    if scaled and "k_scale" in found:  # a scale for every slot
        k, v = k * found["k_scale"][..., None], v * found["v_scale"][..., None]
    return k[:, :count], v[:, :count].contiguous()


def _out_of_reach(table: Table) -> list[list[int]]:
    """Entries of window tokens that the next query does not see, but whose pages are still here."""
    alive_from = table.end - table.plan.reach + 1
    return [
        [
            page.id,
            0,
            min(stop, alive_from) - page.start,
            page.origin,
            UNLIMITED,
            page.start,
            UNLIMITED,
        ]
        for page, stop in table.window_spans()
        if page.start < alive_from
    ]
