# SPDX-License-Identifier: Apache-2.0
"""Where blocks are: pages of the pool (near), slabs of host memory, segment files.

With a disk every block is written there, and host memory holds copies of the newest. Without one
host memory is the last tier, and when it is full the oldest block is forgotten. Near pages are a
cache: each layer of a page holds a block of its own, so layers can recall different blocks within
the same pages.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_value
from .disk import Disk, Read
from .layout import Layout
from .pool import PagePool
from .segment import Fault, Record

SLAB = 64 << 20
"""Bytes of host memory taken at a time."""


class Place(NamedTuple):
    """Where a block is: its host slot and its disk slot, each -1 if it is not there."""

    host: int
    disk: int


class Fetched(NamedTuple):
    """pages: where each block is now, -1 for one that is damaged or gone; faults: what is wrong."""

    pages: list[int]
    faults: list[Fault]


class Host:
    """Host memory for `capacity` blocks, in slabs taken as they fill; pinned where CUDA is."""

    def __init__(self, layout: Layout, capacity: int) -> None:
        self.layout, self.capacity = layout, capacity
        self.per_slab = max(1, min(capacity, SLAB // layout.block_bytes))
        self._slabs: list[Tensor] = []
        self._split: list[dict[str, Tensor]] = []  # views of each slab
        self._free: list[int] = []
        self.pinned = torch.cuda.is_available()

    @property
    def nbytes(self) -> int:
        return sum(slab.nbytes for slab in self._slabs)

    def take(self) -> int:
        """A free slot; -1 when all are taken."""
        if not self._free:
            first = len(self._slabs) * self.per_slab
            stop = min(first + self.per_slab, self.capacity)
            if first >= stop:
                return -1
            self._slabs.append(self.layout.empty(stop - first, pinned=self.pinned))
            self._split.append(self.layout.split(self._slabs[-1]))
            self._free = list(range(stop - 1, first - 1, -1))
        return self._free.pop()

    def free(self, slot: int) -> None:
        self._free.append(slot)

    def pieces(self, slot: int, layer: int) -> dict[str, Tensor]:
        """Of one layer, as `Layout.split` gives them."""
        slab, at = divmod(slot, self.per_slab)
        return {name: x[at, layer] for name, x in self._split[slab].items()}

    def __getitem__(self, slot: int) -> Tensor:
        """uint8 [layers, part_bytes]."""
        return self._slabs[slot // self.per_slab][slot % self.per_slab]


class Tiers:
    """Blocks by number, and one table of where each is.

    host_blocks: how many blocks host memory has room for. disk: where all of them go, or None.
    Counts: hits (near already), from_host and from_disk blocks, times one layer; moved_bytes of
    these; forgotten blocks.
    """

    def __init__(self, layout: Layout, *, host_blocks: int = 0, disk: Disk | None = None) -> None:
        if host_blocks < 1 and disk is None:
            raise bad_value("archive", "tier", "room in host memory or on a disk", "neither")
        self.layout, self.disk = layout, disk
        self.host = Host(layout, host_blocks)
        self.hits = self.from_host = self.from_disk = self.moved_bytes = self.forgotten = 0
        self._host, self._disk = array("q"), array("q")
        self._kept: deque[int] = deque()  # blocks in host memory, oldest first
        self._pool: PagePool | None = None
        self._pages: list[int] = []
        self._clock = 0

    def __len__(self) -> int:
        return len(self._host)

    def place(self, block: int) -> Place:
        return Place(self._host[block], self._disk[block])

    def near(self, layer: int) -> dict[int, int]:
        """Of the blocks that a layer has in the pool, the page of each."""
        return {b: self._pages[s] for b, s in self._slot[layer].items()} if self._pages else {}

    # --- far tiers

    def reserve(self, count: int) -> list[int]:
        """Room for so many blocks, for `put` or `release`. OSError if the disk is full."""
        return [-1] * count if self.disk is None else self.disk.reserve(count)

    def release(self, room: Sequence[int]) -> None:
        if self.disk is not None:
            self.disk.release(room)

    def put(
        self, blocks: Sequence[Tensor], records: Sequence[Record], room: list[int] | None = None
    ) -> list[int]:
        """Takes blocks, uint8 [layers, part_bytes] each (they are ours from now on); their numbers.

        OSError, and none, when the disk has no room.
        """
        room = self.reserve(len(blocks)) if room is None else room
        made = []
        for block, record, slot in zip(blocks, records, room, strict=True):
            number = len(self)
            self._host.append(-1)
            self._disk.append(slot)
            if self.host.capacity:
                self._keep(number, block)
            if self.disk is not None:
                self.disk.put(slot, block.numpy(), record)
            made.append(number)
        return made

    def _keep(self, number: int, block: Tensor) -> None:
        slot = self.host.take()
        if slot < 0:
            oldest = self._kept.popleft()
            slot, self._host[oldest] = self._host[oldest], -1
            self.forgotten += self.disk is None
        self.host[slot].copy_(block)
        self._host[number] = slot
        self._kept.append(number)

    def adopt(self) -> list[tuple[int, Record]]:
        """Numbers for what the disk already has, oldest first; call it once, before `put`."""
        assert self.disk is not None
        assert not len(self)
        found = []
        for slot, record in sorted(self.disk.records.items(), key=lambda x: x[1].serial):
            found.append((len(self), record))
            self._host.append(-1)
            self._disk.append(slot)
        return found

    def drop(self, blocks: Sequence[int]) -> None:
        """Forgets blocks everywhere; their numbers stay theirs."""
        for b in blocks:
            if self._host[b] >= 0:
                self._kept.remove(b)
                self.host.free(self._host[b])
        if self.disk is not None:
            self.disk.drop([self._disk[b] for b in blocks if self._disk[b] >= 0])
        for b in blocks:
            self._host[b] = self._disk[b] = -1
        self._forget_near(blocks)

    # --- near pages

    def attach(self, pool: PagePool, pages: int) -> None:
        """Takes pages of the pool as the near tier. ValueError when too few are free."""
        self._pages = pool.take(pages)
        for page in self._pages:
            pool.filled[page] = pool.page_size
        self._pool = pool
        layers = self.layout.layers
        self._slot: list[dict[int, int]] = [{} for _ in range(layers)]
        self._block = np.full((layers, pages), -1, np.int64)
        self._pins = np.zeros((layers, pages), np.int32)
        self._used = np.zeros((layers, pages), np.int64)

    def detach(self) -> None:
        """Gives the near pages back."""
        if self._pool is not None:
            self._pool.drop(self._pages)
        self._pool, self._pages = None, []

    @property
    def near_pages(self) -> int:
        return len(self._pages)

    def fetch(self, blocks: Sequence[int], layer: int) -> Fetched:
        """Brings one layer of these blocks into near pages, in one go, and pins them there.

        What is near already stays where it is; the rest takes the pages unused for longest.
        ValueError, and nothing moves, when more pages would be pinned than there are.
        """
        pool = self._pool
        assert pool is not None
        slots, pins = self._slot[layer], self._pins[layer]
        missing = [b for b in dict.fromkeys(blocks) if b not in slots]
        held = {slots[b] for b in blocks if b in slots}
        idle = [s for s in np.argsort(self._used[layer], kind="stable") if not pins[s]]
        idle = [int(s) for s in idle if int(s) not in held]
        if len(idle) < len(missing):
            raise self._short(len(missing), len(idle))
        self.hits += len(held)
        taken = dict(zip(missing, idle, strict=False))
        for s in taken.values():
            slots.pop(int(self._block[layer, s]), None)
            self._block[layer, s] = -1
        faults = self._load(taken, layer, pool)
        self._clock += 1
        for b in blocks:
            if b in slots:
                self._used[layer, slots[b]] = self._clock
                pins[slots[b]] += 1
        return Fetched([self._pages[slots[b]] if b in slots else -1 for b in blocks], faults)

    def check_room(self, blocks: Sequence[int], layer: int, released: Sequence[int] = ()) -> None:
        """ValueError if `fetch` would lack pages, once `released` are unpinned."""
        pins = self._pins[layer].copy()
        for b in released:
            pins[self._slot[layer][b]] -= 1
        busy = {int(self._block[layer, s]) for s in np.flatnonzero(pins)}
        want = set(blocks) - busy
        free = len(self._pages) - len(busy)
        if len(want) > free:
            raise self._short(len(want), free)

    def _short(self, need: int, free: int) -> ValueError:
        expected, got = f"{need} pages that no stream uses", f"{free} of {len(self._pages)}"
        hint = "recall less, or give the archive more pages"
        return bad_value("recall", "pages", expected, got, hint)

    def _load(self, taken: dict[int, int], layer: int, pool: PagePool) -> list[Fault]:
        part = self.layout.part_bytes
        reads: list[tuple[int, Read, Tensor | None]] = []
        done = []
        for b, s in taken.items():
            host, disk = self._host[b], self._disk[b]
            if host >= 0:
                self.layout.unpack(self.host.pieces(host, layer), pool, layer, self._pages[s])
                self.from_host += 1
                self.moved_bytes += part
                done.append(b)
            elif disk >= 0:
                room = None
                into = self.layout.direct(pool, layer, self._pages[s])
                if into is None:
                    room = torch.empty(part, dtype=torch.uint8)
                    *_, first, nbytes = self.layout.pieces[-1]
                    into = [room.numpy().data[: first + nbytes]]
                reads.append((b, Read(disk, layer, into), room))
        faults = []
        if reads:
            assert self.disk is not None
            found = self.disk.fetch([read for _, read, _ in reads])
            self.from_disk += len(reads)
            self.moved_bytes += part * len(reads)
            for (b, _, room), fault in zip(reads, found, strict=True):
                if fault is not None:
                    faults.append(fault)
                    self._disk[b] = -1
                    continue
                if room is not None:
                    self.layout.unpack(self.layout.split(room), pool, layer, self._pages[taken[b]])
                done.append(b)
        for b in done:
            self._slot[layer][b] = taken[b]
            self._block[layer, taken[b]] = b
        return faults

    def prefetch(self, blocks: Sequence[int], layer: int) -> int:
        """Begins to read what only the disk has, as much as its queue takes; returns how many."""
        if self.disk is None:
            return 0
        near = self._slot[layer] if self._pages else {}
        far = [b for b in blocks if b not in near and self._host[b] < 0 <= self._disk[b]]
        return self.disk.prefetch([(self._disk[b], layer) for b in far])

    def pin(self, blocks: Sequence[int], layer: int) -> None:
        """Blocks that are near and pinned are so once more."""
        for b in blocks:
            self._pins[layer, self._slot[layer][b]] += 1

    def gone(self, block: int) -> bool:
        """Whether no tier but perhaps the near pages has it."""
        return self._host[block] < 0 and self._disk[block] < 0

    def unpin(self, blocks: Sequence[int], layer: int) -> None:
        """These may make room for others again; until then they stay."""
        for b in blocks if self._pages else ():
            if b in self._slot[layer]:
                self._pins[layer, self._slot[layer][b]] -= 1

    def _forget_near(self, blocks: Sequence[int]) -> None:
        for layer, slots in enumerate(self._slot if self._pages else ()):
            for b in blocks:
                slot = slots.pop(b, None)
                if slot is not None:
                    self._block[layer, slot] = -1
                    self._pins[layer, slot] = 0

    def flush(self) -> None:
        """Returns when everything is on the disk. OSError if it cannot be."""
        if self.disk is not None:
            self.disk.flush()

    def close(self) -> None:
        """Closes the files and gives the near pages back."""
        self.detach()
        if self.disk is not None:
            self.disk.close()
