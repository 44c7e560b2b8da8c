# SPDX-License-Identifier: Apache-2.0
"""Segment files: what was committed is there, damage is named, a full disk loses nothing."""

import errno
import os
import resource
import threading

import numpy as np
import pytest
import torch

from headrace.memory.disk import Disk
from headrace.memory.layout import Layout
from headrace.memory.segment import HEADER, Segment

from .archives import LAYOUT, SUMMARY, block, disk, kills, read, record, write


def test_blocks_come_back_from_memory_from_files_and_after_a_restart(tmp_path):
    store = disk(tmp_path)
    slots = write(store, range(11))  # three segments
    assert all((read(store, s) == block(n)).all() for n, s in enumerate(slots))
    store.flush()
    assert store.waiting == 0
    assert all((read(store, s) == block(n)).all() for n, s in enumerate(slots))
    store.close()
    store.close()
    again = disk(tmp_path)
    assert len(list(tmp_path.glob("*.blocks"))) == 3
    found = {r.start // 16: (slot, r) for slot, r in again.records.items()}
    assert sorted(found) == list(range(11))
    for number, (slot, r) in found.items():
        assert r.summary == record(number).summary
        assert (read(again, slot) == block(number)).all()
    serials = [found[n][1].serial for n in range(11)]
    assert serials == sorted(set(serials))
    slot = write(again, range(11, 12))[0]
    assert again.records[slot].serial > serials[-1]
    again.close()


def test_prefetched_parts_are_taken_and_the_queue_is_bounded(tmp_path):
    store = disk(tmp_path, queue=3)
    slots = write(store, range(6))
    store.flush()
    parts = [(s, n) for s in slots for n in range(2)]
    assert store.prefetch(parts) == 3
    before = store.reads
    store.prefetch(parts[:3])  # on their way already
    assert (read(store, slots[0]) == block(0)).all()
    assert store.reads - before <= 2
    assert store.prefetch(parts[2:]) == 3
    store.forget()
    assert (read(store, slots[5]) == block(5)).all()
    store.close()


def test_what_was_read_ahead_of_a_drop_is_not_taken_for_what_follows(tmp_path):
    store = disk(tmp_path)
    (slot, *_) = write(store, range(4))
    store.flush()
    store.prefetch([(slot, 0), (slot, 1)])
    store.drop([slot])
    store.flush()
    assert write(store, range(4, 5)) == [slot]
    store.flush()
    assert (read(store, slot) == block(4)).all()
    store.close()


def test_put_waits_for_the_writer(tmp_path, monkeypatch):
    store = disk(tmp_path, queue=2)
    gate = threading.Event()
    real = Segment.sync_blocks
    monkeypatch.setattr(Segment, "sync_blocks", lambda self: (gate.wait(), real(self)))
    done = threading.Event()
    writer = threading.Thread(target=lambda: (write(store, range(8)), done.set()))
    writer.start()
    assert not done.wait(0.1)
    assert store.waiting <= 3
    gate.set()
    writer.join()
    store.flush()
    assert len(store.records) == 8
    store.close()


def test_dropped_slots_are_used_again_and_not_found_again(tmp_path):
    store = disk(tmp_path)
    slots = write(store, range(4))
    store.drop(slots[1:3])
    store.flush()
    assert set(write(store, range(10, 12))) == set(slots[1:3])
    store.close()
    again = disk(tmp_path)
    assert {r.start // 16 for r in again.records.values()} == {0, 3, 10, 11}
    assert len(list(tmp_path.glob("*.blocks"))) == 1
    again.close()


def test_a_block_dropped_before_it_was_written_does_not_come_back(tmp_path):
    store = disk(tmp_path)
    store.drop(write(store, range(3))[1:2])
    store.close()
    again = disk(tmp_path)
    assert {r.start // 16 for r in again.records.values()} == {0, 2}
    again.close()


@pytest.mark.parametrize("layer", range(LAYOUT.layers))
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_flipped_bit_is_named_and_never_served(tmp_path, layer, where):
    store = disk(tmp_path)
    write(store, range(3))
    store.close()
    *_, first, nbytes = LAYOUT.pieces[-1]
    at = LAYOUT.block_bytes + layer * LAYOUT.part_bytes
    at += 0 if where == "first" else first + nbytes - 1
    _flip(tmp_path / "000000.blocks", at)
    store = disk(tmp_path)
    assert len(store.records) == 3  # blocks are looked at when they are read
    assert read(store, 1) is None
    assert str(store.faults[0]) == f"000000.blocks, block 1: layer {layer} has a wrong checksum"
    assert 1 not in store.records
    assert read(store, 1) is None
    assert all((read(store, n) == block(n)).all() for n in (0, 2))
    assert 1 not in store.reserve(8)  # what is there is left alone
    store.close()


def test_damaged_records_and_headers_and_short_files_are_named(tmp_path):
    store = disk(tmp_path, blocks=2)
    write(store, range(6))
    store.close()
    _flip(tmp_path / "000000.index", HEADER + 100)
    _flip(tmp_path / "000001.index", 30)
    os.truncate(tmp_path / "000002.blocks", LAYOUT.block_bytes + 8)
    store = disk(tmp_path, blocks=2)
    assert {r.start // 16 for r in store.records.values()} == {1, 4}
    told = sorted(map(str, store.faults))
    assert told[0] == "000000.blocks, block 0: its record is damaged"
    assert "000001.index" in told[1]
    assert "a wrong checksum" in told[1]
    assert told[2] == "000002.blocks, block 1: the file ends before it"
    slots = write(store, range(6, 9))
    store.flush()
    assert all((read(store, s) == block(n)).all() for s, n in zip(slots, range(6, 9), strict=True))
    assert (tmp_path / "000001.blocks").stat().st_size > 0  # nothing of it was written over
    store.close()


def test_a_segment_without_its_name_is_cleared_away(tmp_path):
    disk(tmp_path).close()
    (tmp_path / "000000.blocks").write_bytes(b"x")
    (tmp_path / "000000.part").write_bytes(b"x")
    store = disk(tmp_path)
    assert not list(tmp_path.glob("0*"))
    write(store, range(2))
    store.close()


def test_another_kind_of_archive_and_a_second_writer_get_one_line(tmp_path):
    store = disk(tmp_path)
    write(store, range(1))
    with pytest.raises(ValueError, match=r"^archive\(.*\): expected a folder of its own, got one"):
        disk(tmp_path)
    store.close()
    with pytest.raises(ValueError, match=r"expected .*summary_bytes 32.*, got .*96.*; use another"):
        Disk(tmp_path, LAYOUT, 32)
    other = Layout(2, 2, 16, 16, torch.bfloat16)
    with pytest.raises(ValueError, match=r"expected layout .*bfloat16.*float32"):
        Disk(tmp_path, other, SUMMARY)
    disk(tmp_path).close()  # the lock is free again
    with pytest.raises(ValueError, match=r"^Disk\(queue\): expected 1 or more, got 0$"):
        disk(tmp_path, queue=0)


def test_no_room_for_a_segment_is_one_line_and_changes_nothing(tmp_path):
    store = disk(tmp_path)
    slots = write(store, range(4))
    store.flush()
    before = sorted(p.name for p in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LAYOUT.block_bytes, hard))
    try:
        with pytest.raises(OSError, match=r"^\[Errno 27\] archive\(.*\): expected room for a seg"):
            store.reserve(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    slots += write(store, range(4, 6))  # there is room again
    store.flush()
    assert all((read(store, s) == block(n)).all() for n, s in enumerate(slots))
    store.close()


@pytest.mark.parametrize("method", ["write", "sync_blocks", "note", "sync_index"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_stays_readable_and_is_written_later(
    tmp_path, monkeypatch, method, code
):
    store = disk(tmp_path, blocks=16, queue=3)
    write(store, range(2))
    store.flush()
    broken = threading.Event()
    broken.set()
    real = getattr(Segment, method)

    def fails(self, *args):
        if broken.is_set():
            raise OSError(code, os.strerror(code))
        return real(self, *args)

    monkeypatch.setattr(Segment, method, fails)
    slots = write(store, range(2, 8))  # more than the queue holds: not stuck
    with pytest.raises(OSError, match=r"6 blocks wait in memory.*make room, then flush") as told:
        store.flush()
    assert told.value.errno == code
    assert "\n" not in str(told.value)
    with pytest.raises(OSError, match="wait in memory"):
        store.reserve(1)
    assert all((read(store, s) == block(n)).all() for n, s in enumerate([0, 1, *slots]))
    broken.clear()
    store.flush()
    store.close()
    again = disk(tmp_path, blocks=16)
    assert all((read(again, n) == block(n)).all() for n in range(8))
    again.close()


def test_a_record_is_written_only_after_its_block_has_reached_the_disk(tmp_path, monkeypatch):
    calls = []
    for name in ("write", "sync_blocks", "note", "sync_index"):
        real = getattr(Segment, name)
        monkeypatch.setattr(
            Segment, name, lambda self, *a, n=name, r=real: (calls.append(n), r(self, *a))[1]
        )
    store = disk(tmp_path)
    write(store, range(1))
    store.flush()
    assert calls == ["write", "sync_blocks", "note", "sync_index"]
    store.close()


def test_a_writer_killed_at_random_points_loses_nothing_it_promised(tmp_path):
    """200 kills: python -m tests.memory.archives 200."""
    seen = kills(str(tmp_path), 12)
    assert seen["kills"] == 12
    assert seen["kept"] > 0


def test_faults_are_counted_once(tmp_path):
    store = disk(tmp_path)
    write(store, range(1))
    store.close()
    _flip(tmp_path / "000000.blocks", 0)
    store = disk(tmp_path)
    assert read(store, 0) is None
    assert read(store, 0) is None
    assert sum("checksum" in f.what for f in store.faults) == 1
    store.close()


def _flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 4]))


def test_meta_tells_what_a_folder_holds(tmp_path):
    assert Disk.meta(tmp_path) is None
    store = disk(tmp_path)
    write(store, range(1))
    store.close()
    meta = Disk.meta(tmp_path)
    assert Layout.from_meta(meta["layout"]) == LAYOUT
    assert np.isclose(meta["summary_bytes"], SUMMARY)
