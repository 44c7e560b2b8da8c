# SPDX-License-Identifier: Apache-2.0
"""Reading blocks back from segment files: many at a time, ahead of need, and checked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .. import _C
from .layout import Layout
from .segment import SECTOR, Fault, Record, Segment

RUN = 1 << 20
"""Bytes that one thread asks the disk for at a time, at most; a part may be more."""

Part = tuple[int, int]
"""A slot and a layer of the block in it."""


class Readers:
    """Reads parts of blocks with `threads` threads, and at most `queue` of them ahead of `fetch`.

    find gives the segment of a slot, the slot in it, and its record (None: nothing is there).
    """

    def __init__(
        self,
        find: Callable[[int], tuple[Segment, int, Record | None]],
        layout: Layout,
        queue: int,
        threads: int,
    ) -> None:
        self._find, self._queue, self._threads = find, queue, threads
        self._sizes = layout.piece_bytes
        self._size = int(self._sizes.sum())
        self._room = aligned(threads * self._room_bytes)
        self._reading = threading.Lock()  # the room serves one fetch at a time
        self._pool = ThreadPoolExecutor(threads, "headrace-read")
        self._ahead: dict[Part, Future[np.ndarray | Fault]] = {}
        self.reads = 0

    @property
    def _room_bytes(self) -> int:
        """For what one thread reads at a time; whole sectors are read."""
        return -(-max(RUN, self._size) // SECTOR) * SECTOR + 2 * SECTOR

    def fetch(self, parts: Sequence[Part], into: np.ndarray) -> list[Fault | None]:
        """Reads all of these, in the order of the disk; for each what is wrong, or None.

        into: addresses uint64 [parts, pieces] of where the pieces of each go.
        """
        found: list[Fault | None] = [None] * len(parts)
        later: list[int] = []
        for i in sorted(range(len(parts)), key=lambda i: parts[i]):
            ahead = self._ahead.pop(parts[i], None)
            if ahead is None:
                later.append(i)
                continue
            got = ahead.result()
            if isinstance(got, Fault):
                found[i] = got
            else:
                copy(got, into[i], self._sizes)
        with self._reading:
            faults = self._read(
                [parts[i] for i in later], into[later], self._room, self._room_bytes, self._threads
            )
        for i, fault in zip(later, faults, strict=True):
            found[i] = fault
        self.reads += len(later)
        return found

    def prefetch(self, parts: Sequence[Part]) -> int:
        """Begins to read these, as many as there is room for; how many are there or coming."""
        accepted = 0
        for key in parts:
            if key not in self._ahead:
                if len(self._ahead) >= self._queue:
                    break
                self._ahead[key] = self._pool.submit(self._staged, key)
                self.reads += 1
            accepted += 1
        return accepted

    def forget(self, slot: int | None = None) -> None:
        """Lets go of what was read ahead and not fetched, of one slot or of all."""
        for key in [key for key in self._ahead if slot is None or key[0] == slot]:
            self._ahead.pop(key).cancel()

    def close(self) -> None:
        self.forget()
        self._pool.shutdown()

    def _staged(self, part: Part) -> np.ndarray | Fault:
        made, room = np.empty(self._size, np.uint8), aligned(self._room_bytes)
        into = made.ctypes.data + np.cumsum(self._sizes) - self._sizes
        (fault,) = self._read([part], into[None].astype(np.uint64), room, room.size, 1)
        return made if fault is None else fault

    def _read(
        self, parts: list[Part], into: np.ndarray, room: np.ndarray, room_bytes: int, threads: int
    ) -> list[Fault | None]:
        """Of parts in the order of the disk."""
        found: list[Fault | None] = []
        facts: list[tuple[int, int, int]] = []
        for slot, layer in parts:
            segment, place, record = self._find(slot)
            found.append(None if record else segment.fault(place, "nothing is there"))
            if record:
                facts.append((segment.reader, segment.at(place, layer), record.sums[layer]))
        there = [i for i, fault in enumerate(found) if fault is None]
        if not there:
            return found
        file, at, sums = (np.array(x) for x in zip(*facts, strict=True))
        file, at, sums = file.astype(np.int32), at.astype(np.int64), sums.astype(np.uint32)
        targets = np.ascontiguousarray(into[there], np.uint64)
        outcome = np.zeros(len(there), np.int32)
        _C.read_parts(
            len(there),
            self._size,
            file.ctypes.data,
            at.ctypes.data,
            sums.ctypes.data,
            len(self._sizes),
            self._sizes.ctypes.data,
            targets.ctypes.data,
            room.ctypes.data,
            room_bytes,
            threads,
            outcome.ctypes.data,
        )
        for i, code in zip(there, outcome.tolist(), strict=True):
            if code:
                segment, place, _ = self._find(parts[i][0])
                found[i] = segment.fault(place, _said(code, parts[i][1]))
        return found


def _said(code: int, layer: int) -> str:
    if code < 0:
        return f"layer {layer}: {os.strerror(-code)}"
    return (
        f"the file ends within layer {layer}"
        if code == 1
        else f"layer {layer} has a wrong checksum"
    )


def aligned(size: int) -> np.ndarray:
    """uint8 [size] that begins at a multiple of SECTOR, as reads past the page cache want it."""
    made = np.empty(size + SECTOR, np.uint8)
    return made[-made.ctypes.data % SECTOR :][:size]


def copy(source: np.ndarray, into: np.ndarray, sizes: np.ndarray) -> None:
    """Bytes into pieces of these sizes at addresses uint64 [pieces], one after the other."""
    first = (source.ctypes.data + np.cumsum(sizes) - sizes).astype(np.uint64)
    copy_runs(into, first, sizes)


def copy_runs(into: np.ndarray, source: np.ndarray, sizes: np.ndarray, threads: int = 1) -> None:
    """Runs of bytes between addresses uint64 [...]; sizes broadcast to their shape."""
    into, source = (np.ascontiguousarray(x, np.uint64) for x in (into, source))
    sizes = np.ascontiguousarray(np.broadcast_to(sizes, into.shape), np.int64)
    _C.copy_runs(into.ctypes.data, source.ctypes.data, sizes.ctypes.data, into.size, threads)
