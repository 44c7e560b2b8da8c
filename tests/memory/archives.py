# SPDX-License-Identifier: Apache-2.0
"""Blocks that say which they are, and writers of them that are killed.

python -m tests.memory.archives [KILLS]: the long form, as JSON. A kill ends a process, not the
machine: what the disk does when the power goes is up to fdatasync and not shown here.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from headrace.memory.disk import Disk
from headrace.memory.layout import Layout
from headrace.memory.segment import Record

LAYOUT = Layout(2, 2, 16, 16, torch.float32)
SUMMARY = 96
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["headrace"])


def block(number: int, layout: Layout = LAYOUT) -> np.ndarray:
    """uint8 [layers, part_bytes] that no other number gives; the padding is zeros."""
    rng = np.random.default_rng(number)
    made = rng.integers(0, 256, (layout.layers, layout.part_bytes), np.uint8)
    *_, first, nbytes = layout.pieces[-1]
    made[:, first + nbytes :] = 0
    return made


def record(number: int) -> Record:
    summary = np.random.default_rng(~number & 0xFFFF).bytes(SUMMARY)
    return Record(b"s".ljust(16), 16 * number, 0, 16, 0, (), summary)


def disk(folder: str | Path, blocks: int = 4, **kinds) -> Disk:
    return Disk(folder, LAYOUT, SUMMARY, segment_bytes=blocks * LAYOUT.block_bytes, **kinds)


def write(store: Disk, numbers: range) -> list[int]:
    slots = store.reserve(len(numbers))
    for number, slot in zip(numbers, slots, strict=True):
        store.put(slot, block(number), record(number))
    return slots


def read(store: Disk, slot: int, layers: int = LAYOUT.layers) -> np.ndarray | None:
    """The block, or None when a layer of it is damaged."""
    room = np.zeros((layers, LAYOUT.part_bytes), np.uint8)
    into = LAYOUT.within(room.ctypes.data + np.arange(layers) * LAYOUT.part_bytes)
    return None if any(store.fetch([(slot, n) for n in range(layers)], into)) else room


def _endless(folder: str, start: int, fifo: str) -> None:
    """Writes blocks without end; says which are on the disk, and which it may have dropped."""
    rng, pipe = random.Random(start), os.open(fifo, os.O_WRONLY)
    store = disk(folder, blocks=64, queue=8)
    say = lambda *words: os.write(pipe, (json.dumps(words) + "\n").encode())  # noqa: E731
    mine = {r.start // 16: slot for slot, r in store.records.items()}
    say("ready")
    at = start
    while True:
        n = rng.randint(1, 6)
        write_to = dict(zip(range(at, at + n), write(store, range(at, at + n)), strict=True))
        at += n
        if len(mine) > 40:  # slots are used again, so a kill can come while one is written over
            gone = rng.sample(sorted(mine), 10)
            say("dropping", gone)
            store.drop([mine.pop(number) for number in gone])
        store.flush()
        mine |= write_to
        say("kept", sorted(write_to))


def kills(folder: str, count: int, seed: int = 0) -> dict[str, int]:
    """Kills a writer `count` times at random points, and looks at the archive each time.

    AssertionError when anything that was said to be kept is not there byte for byte, or when
    anything that is there is not what was written.
    """
    rng = random.Random(seed)
    kept: set[int] = set()
    seen = {"kills": 0, "kept": 0, "unsaid": 0, "torn": 0}
    start = 0
    fifo = f"{folder}/said"
    os.mkfifo(fifo)
    for _ in range(count):
        child = context.Process(target=_endless, args=(folder, start, fifo), daemon=True)
        child.start()
        with open(fifo, "rb") as lines:
            assert json.loads(lines.readline()) == ["ready"]
            time.sleep(rng.uniform(0, 0.15))
            child.kill()
            child.join()
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):
                    kind, numbers = json.loads(line)
                    if kind == "kept":
                        kept.update(numbers)
                        start = max(start, numbers[-1] + 1)
                    else:
                        kept.difference_update(numbers)
        store = disk(folder, blocks=64)
        there = {r.start // 16: slot for slot, r in store.records.items()}
        assert kept <= set(there), f"lost {sorted(kept - set(there))}"
        for number, slot in there.items():
            got = read(store, slot)
            assert got is not None, f"block {number} is damaged"
            assert (got == block(number)).all(), f"block {number} is another"
            assert store.records.get(slot).summary == record(number).summary
        torn = [fault for fault in store.faults if "record is damaged" not in fault.what]
        assert not torn, torn
        seen["torn"] = len(store.faults)
        seen["kills"] += 1
        seen["unsaid"] += len(set(there) - kept)
        start = max([start, *(n + 1 for n in there)])
        kept = set(there)
        store.close()
    return seen | {"kept": len(kept), "written": start}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(kills(folder, int(sys.argv[1]) if len(sys.argv) > 1 else 200)))
