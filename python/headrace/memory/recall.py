# SPDX-License-Identifier: Apache-2.0
"""Recall: which archived blocks a question needs, and how a step sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .dial import Masses, dial, masses
from .regions import UNLIMITED
from .segment import Fault
from .shelf import Shelf
from .summary import Index
from .table import Table
from .view import CAP, COUNT, ORDER, ORIGIN, PAGE


@dataclass(frozen=True)
class Asked:
    """What a question asked in one layer: q [W, Hq, D], not rotated, and lse [W, Hq] of what it saw
    without the archive; at: position of its first token.
    """

    q: Tensor
    lse: Tensor
    at: int


class Recalled:
    """Blocks in near pages, and the pages of the window that no query sees any more, held until
    released.

    By layer: rows, entries of a view; tokens, how many they are; spans, which; blocks; captured
    and missed if they were recalled by mass (see `Dialled`). faults: what was damaged and left out.
    """

    def __init__(
        self,
        shelf: Shelf,
        table: Table,
        chosen: Sequence[np.ndarray],
        in_cache: bool,
        captured: Sequence[float] = (),
        missed: Sequence[float] = (),
    ) -> None:
        """chosen[layer]: rows of the shelf's index, ascending. ValueError when the near pages are
        too few: then nothing was done.
        """
        index, tiers = shelf.index, shelf.store.near()
        self._tiers, self._pool, self._released = tiers, shelf.store.pool, False
        self.captured, self.missed = list(captured), list(missed)
        self.faults: list[Fault] = []
        self.rows: list[list[list[int]]] = []
        self.blocks: list[list[int]] = []
        tail = _out_of_reach(table)
        self._held = [row[PAGE] for row in tail]
        self._pool.hold(self._held)
        try:
            wanted = {n: index.blocks[picked].tolist() for n, picked in enumerate(chosen)}
            fetched = tiers.fetch_layers(wanted)
            for layer, picked in enumerate(chosen):
                blocks, (pages, faults) = wanted[layer], fetched[layer]
                facts = zip(
                    pages,
                    index.starts[picked],
                    index.origins[picked],
                    index.counts[picked],
                    strict=True,
                )
                self.faults += faults
                self.blocks.append([b for b, page in zip(blocks, pages, strict=True) if page >= 0])
                rows = [
                    [page, 0, int(count), int(origin), UNLIMITED, int(start), UNLIMITED]
                    for page, start, origin, count in facts
                    if page >= 0
                ]
                rows += [list(row) for row in tail]
                self.rows.append(in_a_row(rows, table.plan.reach) if in_cache else rows)
        except BaseException:
            self.release()
            raise
        shelf.lose([b for b in index.blocks[_union(chosen)].tolist() if tiers.gone(b)])
        self.tokens = [sum(row[COUNT] for row in rows) for rows in self.rows]

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


def by_mass(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    p: float,
    proven: bool,
    reach: int | None,
    inv_freq: Tensor | None,
) -> tuple[np.ndarray, float, float]:
    """Blocks with which every query and head captures the share p of its softmax; (index rows,
    captured, missed) as `Dialled` has them.

    reach: None where queries see blocks at their own positions, and then every figure is exact
    there. A number places each block right before a window of that reach.
    """
    m = bounds(shelf, layer, asked, reach, inv_freq)
    got = dial(m, p, near=asked.lse.reshape(-1), proven=proven)
    return got.chosen.numpy().astype(np.int64), got.captured, got.missed


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


def _union(chosen: Sequence[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([*chosen, np.empty(0, np.int64)]).astype(np.int64))
