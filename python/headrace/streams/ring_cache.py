# SPDX-License-Identifier: Apache-2.0
"""What frames read of other frames: rolling caches over one page pool.

A frame is the unit here: its keys and values fill pages of their own, whose rotation origin is the
frame itself, so that to see it at another distance is to write another integer. A cache is the
list of frames alive; it is never edited, a tick makes a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value
from ..memory import UNLIMITED, PagePool, Plan, Region
from ..memory.regions import compile_plan
from .positions import Positions
from .ring_kept import Held, Kept, Row
from .ring_mixer import Mixer
from .ring_recall import Recall, Shelf
from .ring_tick import Tick


def bounded(memory: Region, folding: bool) -> Plan:
    """The plan of a memory that holds so many frames and no more; folding: it may have a Fold."""
    plan = compile_plan(memory, folding=folding)
    if plan.reach >= UNLIMITED:
        raise bad_value("Ring", "memory", "a Window of some frames", memory)
    return plan


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
        mixer: Mixer | None = None,
    ) -> None:
        if recall is not None:
            frames = recall.resident
        tokens, device = config.tokens, inv_freq.device
        size = min(64, -(-tokens // 16) * 16)
        if mixer is not None and mixer.page_size is not None:
            size = mixer.page_size
        room = frames * (1 if recall is None else 2)  # in a tick, what is brought back comes beside
        unpaged = frozenset[int]() if mixer is None else mixer.unpaged
        self._paged = frozenset(range(config.layers)) - unpaged
        pages = max(1, len(self._paged)) * -(-tokens // size) * (room + rows)
        self.layers, self.tokens = config.layers, tokens
        self.most_pages = len(self._paged) * -(-tokens // size) * frames
        self.pool = PagePool(1, pages, config.kv_heads, config.head_dim, size, dtype, device)
        self.plan, self.positions, self.swap, self.span = plan, positions, swap, span
        self.shelf = None if recall is None else Shelf(self.pool, recall)
        self.inv_freq, self.mixer = inv_freq, mixer
        self.kept: dict[tuple[object, ...], list[Kept]] = {}
        self.offset = torch.arange(tokens, device=device) * span // tokens

    @property
    def pages_per_frame(self) -> int:
        """Pages of a frame in one layer."""
        return -(-self.tokens // self.pool.page_size)

    def begin(self, rows: Sequence[Row], keep: int | None = None) -> Tick:
        """Pages for the rows of one model call. keep: a shot begins, see `next_shot`."""
        n = self.pages_per_frame
        pages = self.pool.take(n * len(self._paged) * len(rows))
        if self.shelf is not None:
            self.shelf.fetch({j for row in rows for j, _ in row.sees or ()}, self.layers)
        ids = iter(pages)
        for row in rows:
            row.pages = [
                tuple(islice(ids, n)) if layer in self._paged else ()
                for layer in range(self.layers)
            ]
        if self.mixer is not None:
            self.mixer.begin(len(rows))
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
