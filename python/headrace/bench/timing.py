# SPDX-License-Identifier: Apache-2.0
"""Timing that survives a busy machine: what is compared runs in turn, round after round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

from .. import _C


def samples(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    least: int = 3,
    most: int = 200,
    before: Callable[[Callable[[], object]], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call of each callable. They take turns, so that a slow spell falls on all.

    Stops after `seconds`, but not before `least` rounds nor after `most`. One round warms up.
    before: called with a callable ahead of every timed call of it, untimed.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    rounds = 0
    while rounds < least or (rounds < most and time.perf_counter() - start < seconds):
        for name, run in runs.items():
            if before is not None:
                before(run)
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
        rounds += 1
    return times


def interleaved(
    runs: Mapping[str, Callable[[], object]], seconds: float, least: int = 3, most: int = 200
) -> dict[str, float]:
    """Median seconds of each callable, taken as `samples` says."""
    return {name: median(taken) for name, taken in samples(runs, seconds, least, most).items()}


def by_cache(
    runs: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, dict[str, list[float]]]:
    """`samples` of caches that are warm (the call before was the same one) and cold (a buffer
    twice the size of the last cache was written in between)."""
    swept = torch.zeros(2 * last_cache() // 4)
    return {
        "warm": samples(runs, seconds, before=lambda run: run()),
        "cold": samples(runs, seconds, before=lambda _: swept.add_(1)),
    }


def last_cache(assumed: int = 32 << 20) -> int:
    """Bytes of the largest cache of this machine, as Linux tells it; else `assumed`."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 1 << 10, "M": 1 << 20}
    try:
        found = [path.read_text().strip() for path in sizes]
        return max((int(s[:-1]) * units[s[-1]] for s in found), default=assumed)
    except (OSError, ValueError, KeyError):
        return assumed


def quartiles(taken: list[float]) -> tuple[float, float]:
    """Between which half of the times lie."""
    ordered = sorted(taken)
    return ordered[len(ordered) // 4], ordered[len(ordered) - 1 - len(ordered) // 4]


def multiply_add_rate(seconds: float = 0.2) -> float:
    """FLOP/s of the threads in use, from registers: two for each fp32 multiply-add."""
    return 2 * _C.multiply_add_rate(seconds, torch.get_num_threads())


def matmul_rate(size: int = 1536, seconds: float = 0.5) -> float:
    """FLOP/s of torch's own fp32 matrix product of this size."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / interleaved({"matmul": lambda: a @ b}, seconds)["matmul"]


def reader(size: float) -> Callable[[], object]:
    """Reads a buffer of `size` bytes once with every thread; to be timed beside a kernel."""
    words = max(int(size) // 4, 1024)
    buffer = torch.ones(words)
    threads = torch.get_num_threads()
    return lambda: (_C.read_seconds(buffer.data_ptr(), words, 1, threads), buffer)
