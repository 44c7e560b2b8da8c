# SPDX-License-Identifier: Apache-2.0
"""What frames read of other frames: rolling caches over one page pool.

A frame is the unit here: its keys and values fill pages of their own, whose rotation origin is the
frame itself, so that to see it at another distance is to write another integer. A cache is the
list of frames alive; it is never edited, a tick makes a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import bad_value
from ..memory import UNLIMITED, PagePool, Plan, Region
from ..memory.regions import compile_plan
from ..memory.view import BEFORE
from .positions import Positions
from .ring_recall import Recall, Shelf


class Held(NamedTuple):
    """A frame in one layer: its place in time, its pages, and its mean key and value if asked."""

    at: int
    pages: tuple[int, ...]
    mean: tuple[Tensor, Tensor] | None = None


class Kept(NamedTuple):
    """The frames alive in one layer of a cache, as the newest of them sees them."""

    pinned: tuple[Held, ...] = ()
    window: tuple[Held, ...] = ()

    def then(self, new: Held, plan: Plan, swap: float | None) -> tuple[Kept, tuple[Held, ...]]:
        """With one frame more; and those that are let go.

        swap: once the cache is full, a pinned frame whose mean key and value have a cosine with
        those of the new one below this, on average, gives it its place: the least similar, the
        first among equals. Otherwise the oldest of the window goes.
        """
        if len(self.pinned) < plan.pinned:
            return Kept((*self.pinned, new), self.window), ()
        if swap is not None and len(self.window) == plan.reach and self.pinned:
            likeness = [_likeness(held, new) for held in self.pinned]
            least = min(likeness)
            if least < swap:
                out = likeness.index(least)
                pinned = (*self.pinned[:out], new, *self.pinned[out + 1 :])
                return Kept(pinned, self.window), (self.pinned[out],)
        window = (*self.window, new)
        cut = max(0, len(window) - plan.reach)
        return Kept(self.pinned, window[cut:]), window[:cut]

    def next(self, plan: Plan) -> tuple[Held, ...]:
        """What a frame that is not in the cache sees of it."""
        window = self.window[max(0, len(self.window) - plan.reach + 1) :]
        return self.pinned + (window if plan.reach > 1 else ())

    @property
    def frames(self) -> tuple[Held, ...]:
        """All of them, pinned ones first."""
        return self.pinned + self.window


def _likeness(old: Held, new: Held) -> float:
    assert old.mean is not None
    assert new.mean is not None
    k, v = (F.cosine_similarity(a, b, dim=0) for a, b in zip(old.mean, new.mean, strict=True))
    return float((k + v) / 2)


def bounded(memory: Region) -> Plan:
    """The plan of a memory that holds so many frames and no more."""
    plan = compile_plan(memory)
    if plan.reach >= UNLIMITED:
        raise bad_value("Ring", "memory", "a Window of some frames", memory)
    return plan


@dataclass
class Row:
    """A frame of one model call: which cache it reads, and what becomes of its keys.

    cache: a name, None when it reads none. writes: whether it joins that cache. group: rows of the
    same group see one another, None sees itself alone. sees: what a rule recalls for it, instead
    of a cache: frames, and how far before it each stands. pages: [layer], where its keys go.
    """

    at: int
    cache: tuple[object, ...] | None = None
    writes: bool = False
    group: object = None
    sees: Sequence[tuple[int, int]] | None = None
    pages: Sequence[tuple[int, ...]] = ()


class Caches:
    """The caches of a ring by name, each a list of `Kept` by layer, and the pool they live in.

    frames: how many frames all caches hold together; rows: of the largest model call. span:
    positions in time that a frame takes; its tokens are spread over these evenly.

    most_pages: those of so many frames.
    """

    def __init__(
        self,
        config: Any,
        frames: int,
        rows: int,
        plan: Plan | None,
        positions: Positions,
        inv_freq: Tensor,
        span: int,
        swap: float | None,
        dtype: torch.dtype,
        recall: Recall | None = None,
    ) -> None:
        if recall is not None:
            frames = recall.resident
        tokens, device = config.tokens, inv_freq.device
        size = min(64, -(-tokens // 16) * 16)
        room = frames * (1 if recall is None else 2)  # in a tick, what is brought back comes beside
        pages = config.layers * -(-tokens // size) * (room + rows)
        self.layers, self.tokens = config.layers, tokens
        self.most_pages = config.layers * -(-tokens // size) * frames
        self.pool = PagePool(1, pages, config.kv_heads, config.head_dim, size, dtype, device)
        self.plan, self.positions, self.swap, self.span = plan, positions, swap, span
        self.shelf = None if recall is None else Shelf(self.pool, recall)
        self._inv_freq = inv_freq
        self.kept: dict[tuple[object, ...], list[Kept]] = {}
        self._offset = torch.arange(tokens, device=device) * span // tokens

    @property
    def pages_per_frame(self) -> int:
        """Pages of a frame in one layer."""
        return -(-self.tokens // self.pool.page_size)

    def begin(self, rows: Sequence[Row], keep: int | None = None) -> Tick:
        """Pages for the rows of one model call. keep: a shot begins, see `next_shot`."""
        n = self.pages_per_frame
        pages = self.pool.take(n * self.layers * len(rows))
        if self.shelf is not None:
            self.shelf.fetch({j for row in rows for j, _ in row.sees or ()}, self.layers)
        for r, row in enumerate(rows):
            row.pages = [
                tuple(pages[n * (r * self.layers + i) : n * (r * self.layers + i + 1)])
                for i in range(self.layers)
            ]
        return Tick(self, rows, pages, keep)

    def next_shot(self, kept: Kept, keep: int) -> tuple[Kept, tuple[Held, ...]]:
        """A cache as a new shot finds it: the newest `keep` frames of the window join the pinned
        ones, of which as many stay as are planned, the newest; the window is empty."""
        assert self.plan is not None
        moved = kept.window[max(0, len(kept.window) - keep) :] if keep else ()
        pinned = kept.pinned + moved
        out = max(0, len(pinned) - self.plan.pinned)
        dropped = pinned[:out] + kept.window[: len(kept.window) - len(moved)]
        return Kept(pinned[out:], ()), dropped

    def distances(self, keys: Sequence[int]) -> list[int]:
        """How far before the newest of these frames, in order of time, each is."""
        key = torch.tensor([keys])
        seen = torch.ones(key.shape, dtype=torch.bool)
        return self.positions.distance(key[:, -1:], key, seen)[0].tolist()


class Tick:
    """One model call: `attend` for the denoiser, then `commit` or `undo`."""

    def __init__(
        self, caches: Caches, rows: Sequence[Row], pages: list[int], new_shot: int | None
    ) -> None:
        self._caches, self._rows, self._taken, self._shot = caches, rows, pages, new_shot
        self._new = {name: list(kept) for name, kept in caches.kept.items()}
        self._dropped: list[int] = []
        self._keys: dict[int, list[Tensor]] = {}
        self._far: dict[tuple[int, ...], dict[int, int]] = {}
        for row in rows:
            if row.cache is not None and row.sees is None:
                self._new.setdefault(row.cache, [Kept()] * caches.layers)
        device, count = caches._offset.device, caches.tokens
        slot = torch.arange(count)
        size = caches.pool.page_size
        where = torch.empty(caches.layers, len(rows), count, 3, dtype=torch.int64)
        for r, row in enumerate(rows):
            for layer, ids in enumerate(row.pages):
                where[layer, r, :, 0] = torch.tensor(ids)[slot // size]
        where[..., 1] = slot % size
        where[..., 2] = caches._offset.cpu()
        self._where = where.flatten(1, 2).to(device)
        self._q_pos = caches._offset.repeat(len(rows))
        self._q_indptr = (torch.arange(len(rows) + 1, dtype=torch.int32) * count).to(device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Writes the rows' keys, decides what stays alive, and reads."""
        caches = self._caches
        pages, scales = caches.pool.layer(0)
        ops.append(k, v, *pages, self._where[layer], inv_freq=caches._inv_freq, **scales)
        caches.pool.written_bytes += len(q) * caches.pool.row_bytes
        entries, counts = self._entries(layer, k, v)
        device = q.device
        indptr = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        o, _ = ops.paged_attention(
            q,
            *pages,
            torch.tensor(entries, dtype=torch.int64).view(-1, 7).to(device),
            indptr.to(device),
            self._q_indptr,
            self._q_pos,
            inv_freq=caches._inv_freq,
            **scales,
        )
        return o

    def _entries(self, layer: int, k: Tensor, v: Tensor) -> tuple[list[list[int]], list[int]]:
        """Rows of a view: for every frame what it sees, each at its distance in time."""
        caches, plan = self._caches, self._caches.plan
        seen: dict[int, list[Held]] = {}
        for r, row in enumerate(self._rows):
            if row.sees is not None and row.writes:
                mean = k[r * caches.tokens : (r + 1) * caches.tokens].flatten(1).float().mean(0)
                self._keys.setdefault(row.at, []).append(mean)
            if row.cache is None or not row.writes or row.sees is not None:
                continue
            assert plan is not None
            new = Held(row.at, row.pages[layer], self._mean(r, k, v))
            kept, out = self._new[row.cache][layer].then(new, plan, caches.swap)
            self._new[row.cache][layer] = kept
            self._drop(out)
            seen[r] = list(kept.frames)
        if self._shot is not None:
            for by_layer in self._new.values():
                by_layer[layer], out = caches.next_shot(by_layer[layer], self._shot)
                self._drop(out)
        flying: dict[object, list[Held]] = {}
        for row in self._rows:
            if not row.writes:
                flying.setdefault(row.group, []).append(Held(row.at, row.pages[layer]))
        entries: list[list[int]] = []
        counts = []
        for r, row in enumerate(self._rows):
            if row.sees is not None:
                recalled = self._recalled(row, layer)
                entries += recalled
                counts.append(len(recalled))
                continue
            if r not in seen:
                before: Sequence[Held] = ()
                if row.cache is not None and plan is not None:
                    before = self._new[row.cache][layer].next(plan)
                together = [Held(row.at, row.pages[layer])]
                if row.group is not None:
                    together = sorted(flying[row.group], key=lambda held: held.at)
                seen[r] = [*before, *together]
            before_it = len(entries)
            entries += self._view(row.at, seen[r])
            counts.append(len(entries) - before_it)
        return entries, counts

    def _recalled(self, row: Row, layer: int) -> list[list[int]]:
        """Rows of a view: what a rule names, and the frame itself."""
        shelf = self._caches.shelf
        assert shelf is not None
        written = {other.at: other.pages[layer] for other in self._rows if other.writes}
        rows = self._placed(row.pages[layer], 0)
        for number, back in row.sees or ():
            pages = written.get(number) or shelf.pages(number, layer)
            rows += self._placed(pages, -self._caches.span * back)
        return rows

    def _placed(self, pages: Sequence[int], origin: int) -> list[list[int]]:
        """The pages of a frame, seen from `origin` in time."""
        size, tokens = self._caches.pool.page_size, self._caches.tokens
        counts = (min(size, tokens - i * size) for i in range(len(pages)))
        return [
            [page, 0, count, origin, UNLIMITED, BEFORE, UNLIMITED]
            for page, count in zip(pages, counts, strict=True)
        ]

    def _view(self, at: int, frames: Sequence[Held]) -> list[list[int]]:
        caches = self._caches
        order = tuple(sorted(held.at for held in frames))
        if order not in self._far:  # the same in every layer, but for swaps
            self._far[order] = dict(zip(order, caches.distances(order), strict=True))
        back = self._far[order]
        rows = []
        for held in frames:
            rows += self._placed(held.pages, caches.span * (back[at] - back[held.at]))
        return rows

    def _mean(self, r: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        if self._caches.swap is None:
            return None
        tokens = slice(r * self._caches.tokens, (r + 1) * self._caches.tokens)
        mean_k, mean_v = (x[tokens].flatten(1).float().contiguous().mean(0) for x in (k, v))
        return mean_k, mean_v

    def _drop(self, frames: Sequence[Held]) -> None:
        self._dropped += [page for held in frames for page in held.pages]

    def commit(self) -> None:
        """The new caches count; pages of frames that none of them holds are free again."""
        scratch = [p for row in self._rows if not row.writes for ids in row.pages for p in ids]
        self._caches.kept = self._new
        if self._caches.shelf is not None:
            written = {
                row.at: (list(row.pages), torch.stack(self._keys[row.at]))
                for row in self._rows
                if row.writes
            }
            seen = {j for row in self._rows for j, _ in row.sees or ()}
            self._caches.shelf.commit(written, seen)
        self._caches.pool.drop(scratch + self._dropped)

    def undo(self) -> None:
        """The old caches count, and the pool holds what it held."""
        self._caches.pool.drop(self._taken)
        if self._caches.shelf is not None:
            self._caches.shelf.undo()
