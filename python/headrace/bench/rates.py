# SPDX-License-Identifier: Apache-2.0
"""What a call costs before it does anything, and how fast this machine reads and copies."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch

from .. import _C, ops
from ..buffers import huge
from .case import Case
from .tables import bytes_of, micro
from .timing import FEW, Run, interleaved, last_cache, reader, samples

NEAR = 1 << 18
"""Bytes that a core has in a cache of its own."""
OFTEN = 100
"""What takes less than a clock can tell is called so many times."""


def floor_of(case: Case) -> Run:
    """Moves the bytes of a case: reads them, and writes those that its result writes elsewhere."""
    if case.writes:
        return mover(case.bytes - case.writes, case.writes)
    return reader(case.bytes, case.turns, case.again, case.reads)


def mover(read: float, written: float) -> Run:
    """Reads so many bytes once, from huge pages where there are any, and copies so many of them to
    others, with every thread, or with one where that is quicker."""
    words = -(-max(int(read), 4096) // 64) * 16
    source, target = (huge(torch.empty(words)).fill_(1) for _ in range(2))
    copied = min(int(written) // 64 * 16, words)

    def moving(threads: int) -> Run:
        at = (source.data_ptr(), words, target.data_ptr(), copied, threads)
        return lambda: (_C.copy_seconds(*at), source, target)

    every = torch.get_num_threads()
    if every == 1 or read + written > FEW:
        return moving(every)
    ways = {str(threads): moving(threads) for threads in (1, every)}
    taken = samples(ways, 0.01, before=lambda run: run())
    return ways[min(ways, key=lambda way: median(taken[way]))]


def measured(seconds: float = 0.02) -> dict[str, Any]:
    """Seconds of a call that does nothing, of the extension alone and of an op; bytes and bytes/s
    of reading so many, and of a copy that reads and writes so many together."""
    none, weight = torch.empty(0, 16), torch.zeros(16, 16)
    calls: dict[str, Run] = {
        "extension": lambda: _C.read_seconds(weight.data_ptr(), 0, 0, 1),
        "op": lambda: ops.linear(none, weight),
    }
    told = interleaved({name: partial(_often, run) for name, run in calls.items()}, seconds)
    read, copied = [], []
    for size in (NEAR, 2 * last_cache()):
        runs = {"read": reader(size), "copy": mover(size / 2, size / 2)}
        taken = interleaved(runs, seconds)
        read.append([size, size / taken["read"]])
        copied.append([size, size / taken["copy"]])
    empty = {name: each / OFTEN for name, each in told.items()}
    return {"empty_call_s": empty, "read": read, "copy": copied}


def _often(run: Run) -> None:
    for _ in range(OFTEN):
        run()


def line(found: dict[str, Any]) -> str:
    """What `measured` gives, in words."""
    empty, sizes = found["empty_call_s"], [size for size, _ in found["read"]]
    rates = (" and ".join(f"{rate / 1e9:.1f}" for _, rate in found[n]) for n in ("read", "copy"))
    return (
        f"An empty call: {micro(empty['extension'])} us of the extension, {micro(empty['op'])} us"
        f" of an op. Of {' and '.join(map(bytes_of, sizes))}, GB/s: read {', copied '.join(rates)}."
    )
