# SPDX-License-Identifier: Apache-2.0
"""The archive: fetching beside the rates of disk and memory, and a stream of 10^6 tokens.

    python bench/archive.py OUT.json [--plot OUT.png] [--tokens N] [--questions N] [--folder DIR]
        [--times OLD.json]

--times takes what depends on how busy the machine is (rates, and the times of the stream) from a
record, which it names; what is found, moved and missed is taken anew.

Rates: pages of 4 layers of 8 heads of 128 in bfloat16 (1 MiB), 64 of 160 at random, against the
sequential read of the same files (none of it cached; through the page cache and past it, the
quicker counts) and against one copy of as many bytes; medians of rounds that take turns, shares
are medians of the ratio in a round. Time is the clock's for the disk and the processor's for the
copies, where one thread does all. Stream: see archive_facts.py; all policies see the newest 512
tokens and 4 sinks; window only gets the memory of pages and index on top. Dial: see
archive_dial.py for that of a real model's keys.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import drawn
import numpy as np
import torch
from archive_dial import structured
from archive_facts import planted

from headrace import Archive, OnDisk, PagePool
from headrace.cli import report
from headrace.memory import ArchiveStore, Page
from headrace.memory.disk import Disk
from headrace.memory.disk_reads import aligned

LAYERS, STORED, WANTED = 4, 160, 64
AT_ONCE = 4 << 20
TIMES = ("us_a_token", "reopened_s", "score_ms")


def rates(folder: Path, rounds: int) -> dict[str, Any]:
    """Fetch from disk and from host memory against what the machine does with as many bytes."""
    pool = PagePool(LAYERS, WANTED + 1, 8, 128, 64, torch.bfloat16)
    pool.k.normal_(), pool.v.normal_()
    made: dict[str, Any] = {"page_mib": pool.page_bytes / 2**20, "fetched": WANTED}
    for kind in ("disk", "host"):
        place = OnDisk(folder / kind, host_blocks=STORED if kind == "host" else 0)
        store = ArchiveStore(Archive("mean", place, WANTED), pool, None)
        shelf = store.shelf()
        begun = time.perf_counter()
        for i in range(STORED):
            shelf.stage(Page(0, 64 * i, 64 * i), 64 * (i + 1))
            shelf.commit()
        store.flush()
        written = STORED * store.tiers.layout.block_bytes / (time.perf_counter() - begun)
        size = store.tiers.layout.block_bytes * WANTED
        calls, before = _calls(kind, store, size)
        for call in calls.values():
            call()
        clock = time.thread_time if kind == "host" else time.perf_counter
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                before()
                begun = clock()
                call()
                taken[name].append(clock() - begun)
        peers = [min(x) for x in zip(*(taken[n] for n in taken if n != "ours"), strict=True)]
        made[kind] = {
            **{f"{n}_gb_s": round(size / median(x) / 1e9, 3) for n, x in taken.items()},
            "of_floor": round(median(map(float.__truediv__, peers, taken["ours"])), 3),
            "to_disk_gb_s": round(written / 1e9, 3),
        }
        shelf.close()
        store.close()
        shutil.rmtree(folder / kind)
    return made


def _calls(
    kind: str, store: ArchiveStore, size: int
) -> tuple[dict[str, Callable[[], Any]], Callable[[], None]]:
    tiers, disk = store.near(), store.tiers.disk
    assert disk is not None
    rng = np.random.default_rng(0)
    chosen: list[int] = []

    def before() -> None:
        for layer in range(LAYERS):
            tiers.unpin(chosen, layer)
        tiers.forget_near()
        chosen[:] = rng.permutation(STORED)[:WANTED].tolist()
        for segment in disk._segments.values():
            os.posix_fadvise(segment.blocks, 0, 0, os.POSIX_FADV_DONTNEED)

    def ours() -> None:
        got = tiers.fetch_layers(dict.fromkeys(range(LAYERS), chosen))
        assert not any(one.faults for one in got.values())

    source, target = (torch.full((size,), i, dtype=torch.uint8) for i in range(2))
    if kind == "host":
        return {"copy": lambda: target.copy_(source), "ours": ours}, before
    room = aligned(AT_ONCE)
    sequential = {
        "sequential": lambda: _read(disk, room, size, lambda s: s.blocks),
        "sequential_past_the_cache": lambda: _read(disk, room, size, lambda s: s.reader),
    }
    return {**sequential, "ours": ours}, before


def _read(disk: Disk, room: np.ndarray, size: int, file: Callable[[Any], int]) -> None:
    for segment in disk._segments.values():
        length = segment.slots * segment.layers * segment.part_bytes
        for at in range(0, length, len(room)):
            take = min(len(room), length - at, size)
            if take <= 0:
                return
            os.preadv(file(segment), [room.data[:take]], at)
            size -= take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--times", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a thread each for the copies, the writer and the readers
    made: dict[str, Any] = report.taken()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        old = json.loads(args.times.read_text("utf-8")) if args.times else None
        made["rates"] = old["rates"] if old else rates(Path(name), args.rounds)
        print("rates", made["rates"]["disk"], made["rates"]["host"], flush=True)
        made["stream"] = planted(Path(name), args.tokens, args.questions)
        if old:
            made["stream"] |= {k: old["stream"][k] for k in TIMES}
            made["times_from"] = {k: old[k] for k in ("command", "taken", "commit")}
        print("stream", {k: v for k, v in made["stream"].items() if k != "curves"}, flush=True)
    made["dial"] = structured()
    report.write(made, args.out)
    if args.plot is not None:
        drawn.archive(made, args.plot)


if __name__ == "__main__":
    main()
