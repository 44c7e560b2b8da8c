# SPDX-License-Identifier: Apache-2.0
"""Reading blocks back from segment files: many at a time, ahead of need, and checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .segment import Fault, Record, Segment


class Read(NamedTuple):
    """One layer of a block, wanted in these buffers, one after the other."""

    slot: int
    layer: int
    into: list[memoryview]


class Readers:
    """Threads that read parts of `size` bytes, and at most `queue` parts read ahead of `fetch`.

    find gives the segment of a slot, the slot in it, and its record (None: nothing is there).
    """

    def __init__(
        self,
        find: Callable[[int], tuple[Segment, int, Record | None]],
        size: int,
        queue: int,
        threads: int,
    ) -> None:
        self._find, self._size, self._queue = find, size, queue
        self._pool = ThreadPoolExecutor(threads, "headrace-read")
        self._ahead: dict[tuple[int, int], Future[np.ndarray | Fault]] = {}
        self.reads = 0

    def fetch(self, reads: Sequence[Read]) -> list[Fault | None]:
        """Reads all of these, in the order of the disk; for each what is wrong, or None."""
        found: list[Fault | None] = [None] * len(reads)
        later: list[int] = []
        for i in sorted(range(len(reads)), key=lambda i: reads[i][:2]):
            ahead = self._ahead.pop(reads[i][:2], None)
            if ahead is None:
                later.append(i)
                continue
            got = ahead.result()
            if isinstance(got, Fault):
                found[i] = got
            else:
                copy(got, reads[i].into)
        if len(later) == 1:
            found[later[0]] = self._one(reads[later[0]])
        elif later:
            faults = self._pool.map(self._one, [reads[i] for i in later])
            for i, fault in zip(later, faults, strict=True):
                found[i] = fault
        self.reads += len(later)
        return found

    def prefetch(self, parts: Sequence[tuple[int, int]]) -> int:
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

    def _staged(self, key: tuple[int, int]) -> np.ndarray | Fault:
        room = np.empty(self._size, np.uint8)
        return self._one(Read(*key, [room.data])) or room

    def _one(self, read: Read) -> Fault | None:
        segment, at, record = self._find(read.slot)
        if record is None:
            return segment.fault(at, "nothing is there")
        try:
            if not segment.read(at, read.layer, read.into):
                return segment.fault(at, f"the file ends within layer {read.layer}")
        except OSError as error:
            return segment.fault(at, f"layer {read.layer}: {error.strerror}")
        crc = 0
        for buffer in read.into:
            crc = zlib.crc32(buffer, crc)
        if crc != record.sums[read.layer]:
            return segment.fault(at, f"layer {read.layer} has a wrong checksum")
        return None


def copy(source: np.ndarray, into: list[memoryview]) -> None:
    """Bytes into buffers, one after the other."""
    at = 0
    for buffer in into:
        buffer[:] = source.data[at : at + len(buffer)]
        at += len(buffer)
