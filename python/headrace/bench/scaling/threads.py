# SPDX-License-Identifier: Apache-2.0
"""How the time of ops and of a step falls with the threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import torch

from ... import models
from ...streams import wrap
from .. import shapes
from ..attention import decode, prefill
from ..case import Case
from ..loops.streams import MEMORY, PAGES, Fleet
from ..scores import retrieve
from .curve import Point, Told, Work


def counts() -> list[int]:
    """Powers of two up to the processors that this process may use, and all of these."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = usable or 1
    return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})


def threads(quick: bool, told: Told) -> Iterator[Point]:
    """Every op once with each number of threads, round after round."""
    before = torch.get_num_threads()
    cached, length = (1024, 512) if quick else (16384, 4096)
    cases: dict[str, Case] = {
        "decode": decode(8, cached),
        "prefill": prefill(length, length // 4, torch.bfloat16, False),
        "linear, 64 rows": shapes.linear(64, 2048, 2048),
        "score and select": retrieve(64 * cached, 1, "bounds"),
    }
    for name, case in cases.items():
        error, tolerance = case.check()
        if error > tolerance:
            raise ValueError(f"threads: {name}: off by {error:.1e}, more than {tolerance:.1e}")
    runs: dict[str, Callable[[], object]] = {name: case.ours for name, case in cases.items()}
    with wrap(models.load("bytes-stream"), memory=MEMORY, pool_pages=PAGES * 32 + 256) as engine:
        fleet = Fleet(engine, [engine.open() for _ in range(32)])
        runs["a step of 32 streams"] = fleet.together
        try:
            for turn in range(4 if quick else 25):
                for count in counts():
                    told(f"threads: {count}, turn {turn}")
                    torch.set_num_threads(count)
                    for name, run in runs.items():
                        began = time.perf_counter()
                        run()
                        if turn:  # the first warms up
                            yield name, count, [time.perf_counter() - began]
        finally:
            torch.set_num_threads(before)


THREADS = Work("threads", "The same work with more threads", "threads", "a call", threads, -1.0)
