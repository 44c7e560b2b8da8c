# SPDX-License-Identifier: Apache-2.0
"""Checksums, copies of many runs, and reads of many parts, against the plain way to do each."""

import os

import numpy as np
import pytest

from headrace import _C
from headrace.memory.disk_reads import aligned, copy_runs
from headrace.memory.segment import SECTOR, checksum

INTACT, SHORT, DAMAGED = 0, 1, 2


def bitwise(data):
    """CRC-32C by its definition: long division, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in bytes(data):
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def test_checksum_is_crc32c(isa):
    known = np.frombuffer(b"123456789", np.uint8)
    assert checksum(known) == 0xE3069283  # the check value of the RFC 3720 polynomial
    for size in (0, 1, 7, 8, 63, 65, 3071, 3072, 3073, 3095, 3096, 6000, 10007):
        data = noise(size + 3, size)[3:]  # not aligned
        assert checksum(data) == bitwise(data), size


def test_checksums_of_all_levels_agree_on_much():
    data = noise(1 << 20)
    levels = []
    for level in _C.available_isas():
        _C.force_isa(level)
        levels.append(checksum(data))
        data[12345] ^= 1
        assert checksum(data) != levels[-1]
        data[12345] ^= 1
    _C.force_isa("")
    assert len(set(levels)) == 1


@pytest.mark.parametrize("count", [0, 1, 5, 700])
def test_runs_are_copied_whole_and_nothing_else_is_written(count):
    rng = np.random.default_rng(count)
    sizes = rng.integers(0, 200, count)
    sizes[: count // 100] = rng.integers(900_000, 1_000_000, count // 100)  # past the caches
    gaps = rng.integers(1, 9, count + 1)
    ends = np.cumsum(sizes + gaps[:-1])
    source, target = (
        noise(int(sizes.sum()) + 8),
        np.full(int(ends[-1] if count else 0) + 9, 7, np.uint8),
    )
    want = target.copy()
    at = np.cumsum(sizes) - sizes
    for a, to, n in zip(at, ends - sizes, sizes, strict=True):
        want[to : to + n] = source[a : a + n]
    copy_runs(
        (target.ctypes.data + ends - sizes).astype(np.uint64),
        (source.ctypes.data + at).astype(np.uint64),
        sizes,
        threads=2,
    )
    assert np.array_equal(target, want)


class File:
    """`count` parts of `size` bytes, `stride` apart, in a file; read back into pieces."""

    def __init__(self, path, count, size, stride, pieces, flags=0):
        self.data = noise(count * stride)
        path.write_bytes(self.data.tobytes())
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        try:
            self.file = os.open(path, os.O_RDONLY | flags)
        except OSError:
            pytest.skip("the file system cannot read past its cache")
        self.size, self.stride = size, stride
        self.pieces = np.array(pieces, np.int64)
        self.sums = np.array([checksum(self.part(i)) for i in range(count)], np.uint32)

    def part(self, i):
        return self.data[i * self.stride :][: self.size]

    def read(self, wanted, sums=None, room_bytes=None, threads=2):
        n = len(wanted)
        room_bytes = room_bytes or -(-self.size // SECTOR) * SECTOR + 2 * SECTOR
        room = aligned(threads * room_bytes)
        at = np.array(wanted, np.int64) * self.stride
        out = np.full((n, self.size + 1), 7, np.uint8)
        first = np.cumsum(self.pieces) - self.pieces
        into = (out.ctypes.data + np.arange(n)[:, None] * (self.size + 1) + first).astype(np.uint64)
        file, outcome = np.full(n, self.file, np.int32), np.full(n, -1, np.int32)
        sums = self.sums[list(wanted)] if sums is None else sums
        _C.read_parts(
            n, self.size, file.ctypes.data, at.ctypes.data, sums.ctypes.data, len(self.pieces),
            self.pieces.ctypes.data, into.ctypes.data, room.ctypes.data, room_bytes, threads,
            outcome.ctypes.data,
        )  # fmt: skip
        assert (out[:, -1] == 7).all()
        return out[:, :-1], outcome


FLAGS = [0, getattr(os, "O_DIRECT", 0)]


@pytest.mark.parametrize("flags", FLAGS, ids=["cached", "direct"])
@pytest.mark.parametrize("stride", [0, 24, 5000])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("room", [None, 1 << 16])
def test_parts_come_back_in_any_order_joined_or_not(tmp_path, flags, stride, threads, room):
    size = 2600
    file = File(tmp_path / "f", 40, size, size + stride, (1000, 1600), flags)
    rng = np.random.default_rng(0)
    for wanted in (range(40), [3], [5, 6, 7, 30, 39], rng.permutation(40), [4, 4, 4]):
        got, outcome = file.read(list(wanted), room_bytes=room, threads=threads)
        assert (outcome == INTACT).all()
        for row, i in zip(got, wanted, strict=True):
            assert np.array_equal(row, file.part(i))


@pytest.mark.parametrize("flags", FLAGS, ids=["cached", "direct"])
def test_what_is_wrong_is_said_and_not_copied(tmp_path, flags):
    file = File(tmp_path / "f", 6, 3000, 3000, (3000,), flags)
    sums = file.sums.copy()
    sums[2] ^= 1
    got, outcome = file.read(range(6), sums, room_bytes=1 << 16)
    assert outcome.tolist() == [INTACT, INTACT, DAMAGED, INTACT, INTACT, INTACT]
    assert (got[2] == 7).all()
    os.truncate(tmp_path / "f", 4 * 3000 + 17)
    got, outcome = file.read(range(6), room_bytes=1 << 16)
    assert outcome.tolist() == [INTACT] * 4 + [SHORT] * 2
    assert (got[4:] == 7).all()
    got, outcome = file.read([5], room_bytes=1 << 16)
    assert outcome.tolist() == [SHORT]
    os.close(file.file)
    _, outcome = file.read([0, 1])
    assert (outcome == -9).all()  # EBADF
