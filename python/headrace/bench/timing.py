# SPDX-License-Identifier: Apache-2.0
"""Timing that survives a busy machine: what is compared runs in turn, round after round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import torch

from .. import _C

LONG = 12.0
"""A call that takes as many times as long as to write twice the last cache cannot tell a cold one
by more than a fiftieth: to fill the cache anew takes a quarter of that writing, or less."""
PATIENCE = 3.0
"""A callable has its least number of calls, unless they take as many times its seconds."""

Run = Callable[[], object]


def samples(
    runs: Mapping[str, Run],
    seconds: float,
    least: int = 3,
    most: int = 200,
    before: Callable[[Run], object] | None = None,
    warm: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each call of each callable. They take turns, so that a slow spell falls on all.

    Each has `seconds` for its calls, and leaves when they are spent: a slow one has fewer. It has
    `least` calls all the same, unless those take `PATIENCE` times the seconds, and `most` at most.
    before: called with a callable ahead of every call of it, not timed but spent. A round warms
    up, unless they are warm.
    """
    for run in () if warm else runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    spent, turns = dict.fromkeys(runs, 0.0), list(runs)
    while turns:
        for name in turns:
            if before is not None:
                spent[name] += _seconds(partial(before, runs[name]))
            times[name].append(_seconds(runs[name]))
            spent[name] += times[name][-1]
        turns = [n for n in turns if _goes_on(len(times[n]), spent[n], seconds, least, most)]
    return times


def _seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _goes_on(calls: int, spent: float, seconds: float, least: int, most: int) -> bool:
    return calls < most and spent < (seconds if calls >= least else PATIENCE * seconds)


def interleaved(runs: Mapping[str, Run], seconds: float) -> dict[str, float]:
    """Median seconds of each callable, taken as `samples` says."""
    return {name: median(taken) for name, taken in samples(runs, seconds).items()}


def by_cache(
    runs: Mapping[str, Run],
    seconds: float,
    known: Mapping[str, list[float]] | None = None,
    most: int = 200,
) -> dict[str, dict[str, list[float]]]:
    """`samples` of caches that are warm (the call before was the same one) and cold (a buffer
    twice the size of the last cache was written in between).

    A call that is `LONG` beside that writing cannot tell them apart. It is timed once for both, and
    the same list stands in both; `known` has calls that were timed before.
    """
    swept = torch.zeros(2 * last_cache() // 4)
    sweep = lambda: swept.add_(1)  # noqa: E731
    sweep()
    writing = min(_seconds(sweep) for _ in range(3))
    long = {name: [_seconds(run)] for name, run in runs.items()}
    long = {name: taken for name, taken in long.items() if taken[0] > LONG * writing}
    for name in long:
        long[name] = (known or {}).get(name) or long[name]
    again = {
        name: runs[name]
        for name, taken in long.items()
        if _goes_on(len(taken), sum(taken), seconds, 3, most)
    }
    for name, taken in samples(again, seconds, most=most, warm=True).items():
        long[name] = long[name] + taken
    short = {name: run for name, run in runs.items() if name not in long}
    return {
        "warm": samples(short, seconds, most=most, before=lambda run: run()) | long,
        "cold": samples(short, seconds, most=most, before=lambda _: sweep()) | long,
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
