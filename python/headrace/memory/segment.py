# SPDX-License-Identifier: Apache-2.0
"""Files of blocks: NNNNNN.blocks with the keys and values, NNNNNN.index with what they are.

An index begins with 4096 bytes of header (magic, version, length, CRC-32, JSON); record i of fixed
size follows for slot i: CRC-32 of the rest, flag, stream, start, origin, count, serial number, one
CRC-32C per layer of the block, then the summaries. A record is written after its block has reached
the disk, and it is whole or void by its checksum: what has a record has its bytes. Both files get
their full size when they are made, so a full disk is noticed before anything is promised.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _C
from ..errors import bad_value

MAGIC = b"HRARCHIV"
VERSION = 2  # 1 had the CRC-32 of layers
HEADER = 4096
SECTOR = 4096
"""What reads past the page cache begin and end at multiples of."""
_HEADER = struct.Struct("<8sIII")
_RECORD = struct.Struct("<II16sqqiIQ")  # CRC, flag, stream, start, origin, count, 0, serial
_LIVE = 0x4C495645


@dataclass(frozen=True)
class Record:
    """What a block holds: tokens start..start+count-1 of a stream, keys about `origin`.

    serial: higher is newer. sums: CRC-32C of each layer. summary: its bytes as given.
    """

    stream: bytes
    start: int
    origin: int
    count: int
    serial: int
    sums: tuple[int, ...]
    summary: bytes


class Fault(NamedTuple):
    """Something on the disk that is not what was written, and was not used."""

    file: str
    slot: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}, block {self.slot}: {self.what}"


class Segment:
    """A pair of files with `slots` blocks of `layers` parts of `part_bytes`.

    reader: the file of the blocks once more, opened so that reads go past the page cache, if
    `direct` is wanted and the file system can; they take half of the time, and need no memory.
    """

    def __init__(
        self, path: Path, meta: dict[str, Any], files: tuple[int, int], direct: bool = False
    ) -> None:
        self.path, self.meta = path, meta
        self.blocks, self.index = files
        past = _past_cache(path.with_suffix(".blocks")) if direct else -1
        self.reader = self.blocks if past < 0 else past
        self.slots: int = meta["slots"]
        self.layers: int = meta["layout"]["layers"]
        self.part_bytes: int = meta["part_bytes"]
        self.summary_bytes: int = meta["summary_bytes"]
        self.record_bytes = record_bytes(self.layers, self.summary_bytes)

    @staticmethod
    def create(path: Path, meta: dict[str, Any], direct: bool = False) -> Segment:
        """New files, of full size and on the disk. OSError, and no file, when there is no room."""
        part = path.with_suffix(".part")
        blocks = index = -1
        try:
            blocks = os.open(path.with_suffix(".blocks"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            index = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            segment = Segment(path, meta, (blocks, index))
            os.posix_fallocate(blocks, 0, segment.slots * segment.layers * segment.part_bytes)
            os.posix_fallocate(index, 0, HEADER + segment.slots * segment.record_bytes)
            text = json.dumps(meta).encode()
            head = _HEADER.pack(MAGIC, VERSION, len(text), zlib.crc32(text))
            if len(head) + len(text) > HEADER:
                raise ValueError("header too long")
            _write(index, head + text, 0)
            os.fsync(blocks)
            os.fsync(index)
            os.rename(part, path.with_suffix(".index"))  # the name says that it is complete
            sync_folder(path.parent)
            return Segment(path, meta, (blocks, index), direct)
        except BaseException:
            for file in (blocks, index):
                if file >= 0:
                    os.close(file)
            part.unlink(missing_ok=True)
            path.with_suffix(".blocks").unlink(missing_ok=True)
            raise

    @staticmethod
    def open(path: Path, writable: bool = True, direct: bool = False) -> Segment:
        """Files that are there. ValueError when they are not what they should be."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        index = os.open(path.with_suffix(".index"), mode)
        try:
            head = os.pread(index, HEADER, 0)
            meta = _meta(path, head)
            blocks = os.open(path.with_suffix(".blocks"), mode)
        except BaseException:
            os.close(index)
            raise
        return Segment(path, meta, (blocks, index), direct)

    def scan(self) -> Iterator[tuple[int, Record | Fault]]:
        """Every slot that has a record, and what is wrong with it if something is."""
        have = os.fstat(self.index).st_size
        held = os.fstat(self.blocks).st_size
        if have <= HEADER:
            return
        with mmap.mmap(self.index, 0, access=mmap.ACCESS_READ) as mapped:
            for slot in range(self.slots):
                at = HEADER + slot * self.record_bytes
                raw = mapped[at : at + self.record_bytes]
                if not raw.strip(b"\0") and len(raw) == self.record_bytes:
                    continue
                found = self._parse(slot, raw)
                if isinstance(found, Record) and self._at(slot + 1) > held:
                    found = self.fault(slot, "the file ends before it")
                yield slot, found

    def _parse(self, slot: int, raw: bytes) -> Record | Fault:
        if len(raw) < self.record_bytes or zlib.crc32(raw[4:]) != int.from_bytes(raw[:4], "little"):
            return self.fault(slot, "its record is damaged")
        _, flag, stream, start, origin, count, _, serial = _RECORD.unpack_from(raw)
        if flag != _LIVE:
            return self.fault(slot, "its record is of an unknown kind")
        at = _RECORD.size + 4 * self.layers
        sums = struct.unpack_from(f"<{self.layers}I", raw, _RECORD.size)
        return Record(stream, start, origin, count, serial, sums, raw[at : at + self.summary_bytes])

    def fault(self, slot: int, what: str) -> Fault:
        return Fault(self.path.with_suffix(".blocks").name, slot, what)

    def write(self, slot: int, block: np.ndarray) -> None:
        """The bytes of a block, uint8 [layers, part_bytes]; no promise before `sync_blocks`."""
        _write(self.blocks, block.data.cast("B"), self._at(slot))

    def sync_blocks(self) -> None:
        os.fdatasync(self.blocks)

    def note(self, slot: int, record: Record | None) -> None:
        """Writes the record of a slot, or voids it; no promise before `sync_index`."""
        raw = bytes(self.record_bytes)
        if record is not None:
            raw = self._packed(record)
        _write(self.index, raw, HEADER + slot * self.record_bytes)

    def sync_index(self) -> None:
        os.fdatasync(self.index)

    def _packed(self, r: Record) -> bytes:
        body = _RECORD.pack(0, _LIVE, r.stream, r.start, r.origin, r.count, 0, r.serial)[4:]
        body += struct.pack(f"<{self.layers}I", *r.sums) + r.summary
        body = body.ljust(self.record_bytes - 4, b"\0")
        return zlib.crc32(body).to_bytes(4, "little") + body

    def at(self, slot: int, layer: int) -> int:
        """Where a layer of a block begins in its file."""
        return self._at(slot) + layer * self.part_bytes

    def _at(self, slot: int) -> int:
        return slot * self.layers * self.part_bytes

    def close(self) -> None:
        for file in {self.reader, self.blocks, self.index}:
            os.close(file)


def record_bytes(layers: int, summary_bytes: int) -> int:
    """Of an index record."""
    return -(-(_RECORD.size + 4 * layers + summary_bytes) // 64) * 64


def sync_folder(folder: Path) -> None:
    """New names in a folder reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _meta(path: Path, head: bytes) -> dict[str, Any]:
    name = path.with_suffix(".index").name
    expected = f"an archive index of version {VERSION}"
    if len(head) < _HEADER.size:
        raise bad_value("archive", name, expected, f"{len(head)} bytes")
    magic, version, length, crc = _HEADER.unpack_from(head)
    if magic != MAGIC or version != VERSION:
        raise bad_value("archive", name, expected, f"{magic!r} of version {version}")
    text = head[_HEADER.size : _HEADER.size + length]
    if zlib.crc32(text) != crc:
        raise bad_value("archive", name, "an undamaged header", "a wrong checksum")
    meta: dict[str, Any] = json.loads(text)
    return meta


def _write(file: int, data: Any, at: int) -> None:
    view = memoryview(data)
    while len(view):
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done


def checksum(data: np.ndarray) -> int:
    """CRC-32C of contiguous bytes."""
    return _C.crc32c(data.ctypes.data, data.nbytes)


def _past_cache(path: Path) -> int:
    """A file opened with O_DIRECT; -1 where that cannot be."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError):
        return -1
    try:
        os.preadv(file, [mmap.mmap(-1, SECTOR)], 0)
    except OSError:
        os.close(file)
        return -1
    return file
