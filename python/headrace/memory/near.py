# SPDX-License-Identifier: Apache-2.0
"""Pages of a pool as a cache of blocks: each layer of a page holds a block of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..errors import bad_value
from .pool import PagePool


class Near:
    """`count` pages of a pool, which what was unused for longest leaves first; none to begin with.

    hits: how often a block was asked for that was there.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._pool: PagePool | None = None
        self.pages: list[int] = []
        self.hits = self._clock = 0

    def attach(self, pool: PagePool, count: int) -> None:
        """Takes its pages. ValueError when too few are free."""
        self.pages = pool.take(count)
        for page in self.pages:
            pool.filled[page] = pool.page_size
        self._pool = pool
        self._slot: list[dict[int, int]] = [{} for _ in range(self._layers)]
        self._block = [[-1] * count for _ in range(self._layers)]
        self._pins = np.zeros((self._layers, count), np.int32)
        self._used = np.zeros((self._layers, count), np.int64)

    def detach(self) -> None:
        """Gives the pages back."""
        if self._pool is not None:
            self._pool.drop(self.pages)
        self._pool, self.pages = None, []

    @property
    def pool(self) -> PagePool:
        assert self._pool is not None
        return self._pool

    def of(self, layer: int) -> dict[int, int]:
        """Of the blocks that a layer has here, the page of each."""
        return {b: self.pages[s] for b, s in self._slot[layer].items()} if self.pages else {}

    def idle(self, layer: int) -> list[int]:
        """Blocks that a layer has here and that are not pinned."""
        if not self.pages:
            return []
        return [b for b, s in self._slot[layer].items() if not self._pins[layer, s]]

    def idle_pages(self, layer: int, released: Sequence[int] = ()) -> int:
        """Pages that hold nothing of a layer that is pinned, once `released` are unpinned."""
        return len(self.pages) - len(self._busy(layer, released))

    def _busy(self, layer: int, released: Sequence[int]) -> set[int]:
        pins = self._pins[layer].copy()
        for b in released:
            pins[self._slot[layer][b]] -= 1
        return {self._block[layer][s] for s in np.flatnonzero(pins)}

    def claim(self, wanted: Mapping[int, Sequence[int]]) -> list[tuple[int, int, int]]:
        """(layer, block, page) of what has to be copied here so that all blocks wanted of each
        layer are; their pages hold nothing else any more. ValueError, and nothing changes, when
        more pages would be pinned than there are.
        """
        plans = []
        for layer, blocks in wanted.items():
            slots, pins = self._slot[layer], self._pins[layer]
            missing = [b for b in dict.fromkeys(blocks) if b not in slots]
            held = {slots[b] for b in blocks if b in slots}
            idle: list[int] = []
            if missing:
                order = np.argsort(self._used[layer], kind="stable")
                idle = [s for s in order[pins[order] == 0].tolist() if s not in held]
            if len(idle) < len(missing):
                raise self._short(len(missing), len(idle))
            plans.append((layer, len(held), list(zip(missing, idle, strict=False))))
        made = []
        for layer, held_count, taken in plans:
            self.hits += held_count
            slots, block = self._slot[layer], self._block[layer]
            for b, s in taken:
                slots.pop(block[s], None)
                slots[b], block[s] = s, b
                made.append((layer, b, self.pages[s]))
        return made

    def pin(self, wanted: Mapping[int, Sequence[int]]) -> None:
        """Each block that is here is used now, and stays until it was unpinned as often."""
        self._clock += 1
        for layer, blocks in wanted.items():
            slots = self._slot[layer]
            at = [slots[b] for b in blocks if b in slots]
            self._used[layer, at] = self._clock
            self._pins[layer] += np.bincount(at, minlength=len(self.pages)).astype(np.int32)

    def unpin(self, blocks: Iterable[int], layer: int) -> None:
        """These may make room for others again; until then they stay."""
        for b in blocks if self.pages else ():
            if b in self._slot[layer]:
                self._pins[layer, self._slot[layer][b]] -= 1

    def forget(self, blocks: Iterable[int], layer: int | None = None) -> None:
        """They are not here any more, in one layer or in all, pinned or not."""
        if not self.pages:
            return
        gone = list(blocks)
        for n in range(self._layers) if layer is None else (layer,):
            for b in gone:
                slot = self._slot[n].pop(b, None)
                if slot is not None:
                    self._block[n][slot] = -1
                    self._pins[n, slot] = 0

    def check_room(self, blocks: Sequence[int], layer: int, released: Sequence[int] = ()) -> None:
        """ValueError if `claim` would lack pages, once `released` are unpinned."""
        busy = self._busy(layer, released)
        want = set(blocks) - busy
        free = len(self.pages) - len(busy)
        if len(want) > free:
            raise self._short(len(want), free)

    def _short(self, need: int, free: int) -> ValueError:
        expected, got = f"{need} pages that no stream uses", f"{free} of {len(self.pages)}"
        hint = "recall less, or give the archive more pages"
        return bad_value("recall", "pages", expected, got, hint)
