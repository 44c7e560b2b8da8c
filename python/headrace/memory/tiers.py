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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_value
from .disk import Disk
from .disk_reads import copy_runs
from .host import Host
from .layout import Layout
from .near import Near
from .pool import PagePool
from .segment import Fault, Record

Move = tuple[int, int, int]
"""A layer, a block, and the page of the pool that it goes to."""


class Place(NamedTuple):
    """Where a block is: its host slot and its disk slot, each -1 if it is not there."""

    host: int
    disk: int


class Fetched(NamedTuple):
    """pages: where each block is now, -1 for one that is damaged or gone; faults: what is wrong."""

    pages: list[int]
    faults: list[Fault]


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
        self.host, self._near = Host(layout, host_blocks), Near(layout.layers)
        self.from_host = self.from_disk = self.moved_bytes = self.forgotten = 0
        self._host, self._disk = array("q"), array("q")
        self._kept: deque[int] = deque()  # blocks in host memory, oldest first

    def __len__(self) -> int:
        return len(self._host)

    @property
    def hits(self) -> int:
        return self._near.hits

    def place(self, block: int) -> Place:
        return Place(self._host[block], self._disk[block])

    def near(self, layer: int) -> dict[int, int]:
        """Of the blocks that a layer has in the pool, the page of each."""
        return self._near.of(layer)

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
        self._near.forget(blocks)

    # --- near pages

    def attach(self, pool: PagePool, pages: int) -> None:
        """Takes pages of the pool as the near tier. ValueError when too few are free."""
        self._near.attach(pool, pages)

    def detach(self) -> None:
        """Gives the near pages back."""
        self._near.detach()

    @property
    def near_pages(self) -> int:
        return len(self._near.pages)

    def idle_pages(self, layer: int, released: Sequence[int] = ()) -> int:
        """How many of them hold nothing of a layer that is pinned, once `released` are not."""
        return self._near.idle_pages(layer, released)

    def fetch(self, blocks: Sequence[int], layer: int) -> Fetched:
        """Brings one layer of these blocks into near pages, in one go, and pins them there.

        What is near already stays where it is; the rest takes the pages unused for longest.
        ValueError, and nothing moves, when more pages would be pinned than there are.
        """
        return self.fetch_layers({layer: blocks})[layer]

    def fetch_layers(self, wanted: Mapping[int, Sequence[int]]) -> dict[int, Fetched]:
        """`fetch` of several layers in one go: what lies together on the disk is read together."""
        moves = self._near.claim(wanted)
        try:
            failed = self._load(moves)
        except BaseException:
            for layer, block, _ in moves:
                self._near.forget([block], layer)
            raise
        for layer, block in failed:
            self._near.forget([block], layer)
        self._near.pin(wanted)
        made = {}
        for layer, blocks in wanted.items():
            there = self.near(layer)
            faults = [f for (n, _), f in failed.items() if n == layer and f is not None]
            made[layer] = Fetched([there.get(b, -1) for b in blocks], faults)
        return made

    def _load(self, moves: Sequence[Move]) -> dict[tuple[int, int], Fault | None]:
        """Copies blocks to where they go; what could not be, by layer and block, and why."""
        if not moves:
            return {}
        layers, blocks, pages = np.array(moves, np.int64).T
        host, disk = (np.frombuffer(x, np.int64)[blocks] for x in (self._host, self._disk))
        hosted, stored = np.flatnonzero(host >= 0), np.flatnonzero((host < 0) & (disk >= 0))
        self.from_host += len(hosted)
        self.from_disk += len(stored)
        self.moved_bytes += self.layout.part_bytes * (len(hosted) + len(stored))
        into, staged = self.layout.direct(self._near.pool, layers, pages), None
        if into is None:
            pinned = torch.cuda.is_available()
            size = len(moves), self.layout.part_bytes
            staged = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            into = self.layout.within(staged.data_ptr() + np.arange(len(moves)) * size[1])
        if len(hosted):
            source = self.layout.within(self.host.addresses(host[hosted], layers[hosted]))
            copy_runs(into[hosted], source, self.layout.piece_bytes, torch.get_num_threads())
        failed: dict[tuple[int, int], Fault | None] = {}
        if len(stored):
            assert self.disk is not None
            parts = list(zip(disk[stored].tolist(), layers[stored].tolist(), strict=True))
            for i, fault in zip(stored.tolist(), self.disk.fetch(parts, into[stored]), strict=True):
                if fault is not None:
                    failed[moves[i][:2]] = fault
                    self._disk[moves[i][1]] = -1
        nowhere = np.flatnonzero((host < 0) & (disk < 0)).tolist()
        failed |= {moves[i][:2]: None for i in nowhere}
        spoilt = {block for _, block in failed}  # of a damaged block no layer is given out
        if spoilt:
            failed |= {(n, b): None for n, b, _ in moves if b in spoilt and (n, b) not in failed}
        if staged is not None:
            self._unpack(moves, staged, failed)
        return failed

    def _unpack(
        self, moves: Sequence[Move], staged: Tensor, failed: Mapping[tuple[int, int], object]
    ) -> None:
        by_layer: dict[int, list[int]] = {}
        for i, move in enumerate(moves):
            if move[:2] not in failed:
                by_layer.setdefault(move[0], []).append(i)
        for layer, rows in by_layer.items():
            whole = rows[-1] - rows[0] + 1 == len(rows)
            parts = staged[rows[0] : rows[-1] + 1] if whole else staged[rows]
            self.layout.unpack(parts, self._near.pool, layer, [moves[i][2] for i in rows])

    def prefetch(self, blocks: Sequence[int], layer: int) -> int:
        """Begins to read what only the disk has, as much as its queue takes; returns how many."""
        if self.disk is None:
            return 0
        near = self.near(layer)
        far = [b for b in blocks if b not in near and self._host[b] < 0 <= self._disk[b]]
        return self.disk.prefetch([(self._disk[b], layer) for b in far])

    def check_room(self, blocks: Sequence[int], layer: int, released: Sequence[int] = ()) -> None:
        """ValueError if `fetch` would lack pages, once `released` are unpinned."""
        self._near.check_room(blocks, layer, released)

    def pin(self, blocks: Sequence[int], layer: int) -> None:
        """Blocks that are near and pinned are so once more."""
        self._near.pin({layer: blocks})

    def unpin(self, blocks: Sequence[int], layer: int) -> None:
        """These may make room for others again; until then they stay."""
        self._near.unpin(blocks, layer)

    def gone(self, block: int) -> bool:
        """Whether no tier but perhaps the near pages has it."""
        return self._host[block] < 0 and self._disk[block] < 0

    def forget_near(self) -> None:
        """The near pages hold nothing any more that is not pinned; what is asked for next moves."""
        for layer in range(self.layout.layers):
            self._near.forget(self._near.idle(layer), layer)

    def flush(self) -> None:
        """Returns when everything is on the disk. OSError if it cannot be."""
        if self.disk is not None:
            self.disk.flush()

    def close(self) -> None:
        """Closes the files and gives the near pages back."""
        self.detach()
        if self.disk is not None:
            self.disk.close()
