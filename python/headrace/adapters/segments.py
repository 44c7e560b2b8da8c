# SPDX-License-Identifier: Apache-2.0
"""Files of blobs. A file holds the blobs of one transaction. A blob begins on a page of 4096 bytes,
or in the rest of one if it fits there whole: large ones can be read and pinned page by page, small
ones do not cost a page each.

One file per adapter would cost one fsync and one inode each: a million small adapters would take an
hour to register. Files are written once, under a name that nobody else has, and never changed.
Writers hold a shared lock, collection an exclusive one, both released when a process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = 4096
_PIECES = 1024  # that one call takes
_ZEROS = memoryview(bytes(PAGE))


def places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """(where each blob begins, bytes in all)."""
    offsets, at = [], 0
    for size in sizes:
        if at % PAGE + size > PAGE:
            at = -(-at // PAGE) * PAGE
        offsets.append(at)
        at += size
    return offsets, at


class Segments:
    """The files of blobs under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files, self._parts, self._lock = root / "segments", root / "parts", root / "lock"

    def create(self) -> None:
        """Makes the folders; what is there stays."""
        self._parts.mkdir(exist_ok=True)
        for i in range(256):
            (self._files / f"{i:02x}").mkdir(parents=True, exist_ok=True)
        self._lock.touch()
        sync_folder(self._files)
        sync_folder(self.root)

    def ready(self) -> bool:
        """Whether `create` has been here, to its end."""
        return self._lock.is_file()

    @contextlib.contextmanager
    def locked(self, exclusive: bool = False) -> Iterator[None]:
        """Holds the lock between writers (shared) and collection (exclusive)."""
        handle = os.open(self._lock, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)

    def path(self, segment: bytes) -> Path:
        """Where the file of a segment is."""
        name = segment.hex()
        return self._files / name[:2] / f"{name}.blobs"

    def write(self, blobs: Sequence[Any]) -> tuple[bytes, list[int], int]:
        """Puts blobs on the disk for good; (segment, offsets, size of the file). All or nothing."""
        segment = secrets.token_bytes(16)
        part, target = self._parts / segment.hex(), self.path(segment)
        offsets, total = places([len(blob) for blob in blobs])
        pieces: list[memoryview] = []
        at = 0
        for offset, blob in zip(offsets, blobs, strict=True):
            if offset != at:
                pieces.append(_ZEROS[: offset - at])
            pieces.append(memoryview(blob))
            at = offset + len(blob)
        try:
            with open(part, "xb", buffering=0) as file:
                for i in range(0, len(pieces), _PIECES):
                    _write(file, pieces[i : i + _PIECES])
                os.fsync(file.fileno())
            os.rename(part, target)
            sync_folder(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            with contextlib.suppress(OSError):
                os.unlink(target)
            raise
        return segment, offsets, total

    def map(self, segment: bytes, offset: int, size: int) -> memoryview:
        """Bytes of a blob, mapped copy-on-write. FileNotFoundError; ValueError where cut short."""
        with open(self.path(segment), "rb") as file:
            if os.fstat(file.fileno()).st_size < offset + size:
                raise ValueError("cut short")
            skip = offset % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(
                file.fileno(), size + skip, access=mmap.ACCESS_COPY, offset=offset - skip
            )
        return memoryview(mapped)[skip:]

    def listed(self) -> Iterator[tuple[bytes | None, Path]]:
        """Every file there is; None for what is no finished segment."""
        for path in sorted(self._files.glob("*/*")):
            try:
                yield bytes.fromhex(path.stem), path
            except ValueError:
                yield None, path
        for path in sorted(self._parts.iterdir()):
            yield None, path


def _write(file: io.FileIO, pieces: list[memoryview]) -> None:
    """Writes all of pieces in as few calls as the system takes."""
    done = os.writev(file.fileno(), pieces)
    for piece in pieces:
        skip = min(done, len(piece))
        done, rest = done - skip, piece[skip:]
        while rest:
            rest = rest[file.write(rest) :]


def sync_folder(path: Path) -> None:
    """Makes names in a folder last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
