# SPDX-License-Identifier: Apache-2.0
"""The far tier on a disk: blocks in segment files, written and read beside the work.

`put` hands a block to a writer with a bounded queue and returns; the block can be read from memory
until it is on the disk with its record (`flush` waits for that). A block that cannot be written
stays in memory, and the next call says so in one line. Every byte read is checked before it counts;
what is damaged is named in `faults` and never given out.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import bad_value
from .disk_reads import Part, Readers, copy
from .folder import locked, opened, told
from .layout import Layout
from .segment import Fault, Record, Segment, checksum

BATCH = 64
"""Blocks that one sync of the files covers, at most."""


class Disk:
    """Blocks in the segment files of one folder; slot numbers go on over all files.

    layout and summary_bytes must be those that the folder was made with. queue: blocks that may
    wait for the writer, and parts that may be read ahead. readers: threads. direct: read past the
    page cache. One process at a time writes (a lock says so). records: what each slot holds.
    faults: what was found damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        layout: Layout,
        summary_bytes: int,
        *,
        tag: str = "",
        queue: int = 32,
        readers: int = 4,
        segment_bytes: int = 64 << 20,
        direct: bool = True,
    ) -> None:
        least = {"queue": queue, "readers": readers, "segment_bytes": segment_bytes}
        for name, value in least.items():
            if value < 1:
                raise bad_value("Disk", name, "1 or more", value)
        self.folder, self.layout, self.queue = Path(folder), layout, queue
        self._direct = direct
        self._used = int(layout.piece_bytes.sum())  # of a part; the rest is padding
        self._meta: dict[str, Any] = {
            "layout": layout.meta(),
            "part_bytes": layout.part_bytes,
            "summary_bytes": summary_bytes,
            "tag": tag,
            "slots": max(1, segment_bytes // layout.block_bytes),
        }
        self.written_bytes = 0
        self._pending: dict[int, tuple[np.ndarray, Record]] = {}
        self._jobs: deque[tuple[str, int]] = deque()
        self._error: OSError | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._lock = locked(self.folder)
        try:
            found = opened(self.folder, self._meta, direct)
        except BaseException:
            os.close(self._lock)
            raise
        self._segments, self._number = found.segments, found.next
        self.records: dict[int, Record] = found.records
        self.faults: list[Fault] = found.faults
        self._free = found.free
        self._next = 1 + max((r.serial for r in self.records.values()), default=0)
        self._readers = Readers(self._find, layout, queue, readers)
        self._writer = threading.Thread(target=self._write, name="headrace-write", daemon=True)
        self._writer.start()

    @property
    def reads(self) -> int:
        """Parts read from files."""
        return self._readers.reads

    @property
    def read_bytes(self) -> int:
        """Of these."""
        return self.reads * self._used

    @property
    def slots(self) -> int:
        """Of one segment."""
        return int(self._meta["slots"])

    @property
    def waiting(self) -> int:
        """Blocks that are not on the disk yet."""
        return len(self._pending)

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(
            os.fstat(file).st_blocks * 512
            for segment in self._segments.values()
            for file in (segment.blocks, segment.index)
        )

    def reserve(self, count: int) -> list[int]:
        """Slots for so many blocks, with room on the disk. OSError, one line, and none, if full."""
        self._check()
        with self._changed:
            while len(self._free) < count:
                self._grow()
            return [self._free.pop() for _ in range(count)]

    def _grow(self) -> None:
        path = self.folder / f"{self._number:06d}"
        try:
            segment = Segment.create(path, self._meta, self._direct)
        except OSError as error:
            size = self.slots * self.layout.block_bytes / 2**20
            raise told(error, self.folder, f"room for a segment of {size:.1f} MiB") from None
        number, self._number = self._number, self._number + 1
        self._segments[number] = segment
        first = number * self.slots
        self._free = [*range(first + self.slots - 1, first - 1, -1), *self._free]

    def release(self, slots: Sequence[int]) -> None:
        """Gives reserved slots back that nothing was put in."""
        with self._changed:
            self._free += sorted(slots, reverse=True)

    def put(self, slot: int, block: np.ndarray, record: Record) -> None:
        """Writes uint8 [layers, part_bytes] to a reserved slot, later; the array is then ours.

        Waits while the queue is full, unless the writer cannot go on: then the block is kept in
        memory, the next `reserve` raises, and `flush` tries again.
        """
        with self._changed:
            record = replace(record, serial=self._next)
            self._next += 1
            self._pending[slot] = block, record
            self.records[slot] = record
            self._jobs.append(("put", slot))
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._pending) <= self.queue or self._error)

    def drop(self, slots: Sequence[int]) -> None:
        """Forgets blocks; their slots are used again once the disk knows."""
        with self._changed:
            for slot in slots:
                if self.records.pop(slot, None) is not None:
                    self._jobs.append(("void", slot))
                    self._readers.forget(slot)
            self._changed.notify_all()

    def flush(self) -> None:
        """Returns when all that was put is on the disk. Tries again what failed; OSError if it
        fails again.
        """
        with self._changed:
            self._error = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._jobs or self._error)
        self._check()

    def _check(self) -> None:
        error = self._error
        if error is not None:
            waits = f"{len(self._pending)} blocks wait in memory"
            raise told(error, self.folder, f"to write ({waits})", "make room, then flush()")

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: (self._jobs and not self._error) or (self._closing))
                if self._closing and (not self._jobs or self._error):
                    return
                batch = list(self._jobs)[:BATCH]
            try:
                done = self._commit(batch)
            except OSError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                continue
            with self._changed:
                for kind, slot in batch:
                    self._jobs.popleft()
                    if kind == "put":
                        self._pending.pop(slot)
                        if slot in self.records:
                            self.records[slot] = done[slot]
                    else:
                        self._free.append(slot)
                self._changed.notify_all()

    def _commit(self, batch: list[tuple[str, int]]) -> dict[int, Record]:
        """Blocks first, then their records: a record on the disk has its block there."""
        done: dict[int, Record] = {}
        for kind, slot in batch:
            if kind == "put":
                block, record = self._pending[slot]
                sums = tuple(checksum(part[: self._used]) for part in block)
                done[slot] = replace(record, sums=sums)
                segment, at = self._place(slot)
                segment.write(at, block)
        segments = {id(s): s for _, slot in batch for s in [self._place(slot)[0]]}.values()
        for segment in segments if done else ():
            segment.sync_blocks()
        for kind, slot in batch:
            segment, at = self._place(slot)
            segment.note(at, done[slot] if kind == "put" else None)
        for segment in segments:
            segment.sync_index()
        self.written_bytes += sum(self.layout.block_bytes for _ in done)
        return done

    def _place(self, slot: int) -> tuple[Segment, int]:
        return self._segments[slot // self.slots], slot % self.slots

    def fetch(self, parts: Sequence[Part], into: np.ndarray) -> list[Fault | None]:
        """Reads all of these (slot, layer), in the order of the disk; for each what is wrong, or
        None.

        into: addresses uint64 [parts, pieces] of where the pieces go. What is wrong is not copied.
        """
        found: list[Fault | None] = [None] * len(parts)
        later = []
        for i, (slot, layer) in enumerate(parts):
            with self._changed:
                block = self._pending.get(slot, (None, None))[0]
            if block is None:
                later.append(i)
            else:
                copy(block[layer], into[i], self.layout.piece_bytes)
        faults = self._readers.fetch([parts[i] for i in later], into[later])
        for i, fault in zip(later, faults, strict=True):
            found[i] = fault
            if fault is not None:
                self._spoilt(parts[i][0], fault)
        return found

    def prefetch(self, parts: Sequence[tuple[int, int]]) -> int:
        """Begins to read these (slot, layer), as many as the queue has room for; returns how many
        are on their way or there. `fetch` takes them.
        """
        return self._readers.prefetch([key for key in parts if key[0] not in self._pending])

    def forget(self) -> None:
        """Lets go of what was read ahead and not fetched."""
        self._readers.forget()

    def _find(self, slot: int) -> tuple[Segment, int, Record | None]:
        return *self._place(slot), self.records.get(slot)

    def _spoilt(self, slot: int, fault: Fault) -> None:
        with self._changed:
            self.records.pop(slot, None)  # its slot is not used again: what is there is evidence
            if fault not in self.faults:
                self.faults.append(fault)

    def close(self) -> None:
        """Writes what waits, then closes the files. Closing twice is fine; OSError if blocks could
        not be written, which are then lost.
        """
        if self._lock < 0:
            return
        try:
            self.flush()
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._writer.join()
            self._readers.close()
            self._shut()

    def _shut(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments = {}
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    @staticmethod
    def meta(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
        """What the archive in a folder is made of; None when there is none."""
        for path in sorted(Path(folder).glob("*.index")):
            with contextlib.suppress(ValueError, OSError):
                segment = Segment.open(path, writable=False)
                segment.close()
                return segment.meta
        return None
