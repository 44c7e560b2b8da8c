# SPDX-License-Identifier: Apache-2.0
"""Timing that survives a busy machine: what is compared runs in turn, round after round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from .. import _C
from ..buffers import huge
from ..compiled import DTYPES

LONG = 12.0
"""A call that takes as many times as long as to write twice the last cache cannot tell a cold one
by more than a fiftieth: to fill the cache anew takes a quarter of that writing, or less."""
LONGISH = 4.0
"""The same by a sixteenth: enough where nobody asks for cold ones."""
ROW = 3
"""Calls of a turn then, which is warmed once."""
FEW = 4 << 20
"""Bytes that a single thread may read as quickly as all: the others have to be woken."""
PATIENCE = 3.0
"""A callable has its least number of calls, unless they take as many times its seconds."""

Run = Callable[[], object]

_calls: ContextVar[int] = ContextVar("calls", default=0)


@contextmanager
def at_least(calls: int | None) -> Iterator[None]:
    """So many calls of each callable are timed inside, however long they take: `PATIENCE` has no
    end. None: as without."""
    before = _calls.set(calls or 0)
    try:
        yield
    finally:
        _calls.reset(before)


def samples(
    runs: Mapping[str, Run],
    seconds: float,
    least: int = 3,
    most: int = 200,
    before: Callable[[Run], object] | None = None,
    warm: bool = False,
    had: int = 0,
    row: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each call of each callable. They take turns, so that a slow spell falls on all.

    Each has `seconds` for its calls, and leaves when they are spent: a slow one has fewer. It has
    `least` calls all the same, unless those take `PATIENCE` times the seconds, and `most` at most.
    row: calls of a turn. before: called with a callable ahead of every turn of it, not timed but
    spent. A round warms up, unless they are warm. had: calls that were timed before, which count.
    """
    for run in () if warm else runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    spent, turns = dict.fromkeys(runs, 0.0), list(runs)

    def goes_on(name: str) -> bool:
        return _goes_on(len(times[name]) + had, spent[name], seconds, least, most)

    while turns:
        for name in turns:
            if before is not None:
                spent[name] += _seconds(partial(before, runs[name]))
            for _ in range(row):
                times[name].append(_seconds(runs[name]))
                spent[name] += times[name][-1]
                if not goes_on(name):
                    break
        turns = [name for name in turns if goes_on(name)]
    return times


def _seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _goes_on(calls: int, spent: float, seconds: float, least: int, most: int) -> bool:
    if calls < min(_calls.get(), most):
        return True
    return calls < most and spent < (seconds if calls >= least else PATIENCE * seconds)


def interleaved(runs: Mapping[str, Run], seconds: float) -> dict[str, float]:
    """Median seconds of each callable, taken as `samples` says."""
    return {name: median(taken) for name, taken in samples(runs, seconds).items()}


def over(run: Run, other: Run, seconds: float, least: int = 3, most: int = 200) -> float:
    """How many times as long as the other a callable takes: the median of pairs of calls, so that
    a slow spell, which falls on both, counts for neither. Now one goes first, now the other. As
    many pairs as `samples` would take calls in as many seconds."""
    run(), other()
    ratios: list[float] = []
    spent = 0.0
    while _goes_on(len(ratios), spent, seconds, least, most):
        turn = (run, other) if len(ratios) % 2 else (other, run)
        times = {each: _seconds(each) for each in turn}
        ratios.append(times[run] / times[other])
        spent += sum(times.values())
    return median(ratios)


def by_cache(
    runs: Mapping[str, Run], seconds: float, most: int = 200, cold: bool = True
) -> dict[str, dict[str, list[float]]]:
    """`samples` of caches that are warm (the three calls before were the same one: a large cache
    may keep only what comes again and again) and, unless `cold` is False, cold (a buffer twice the
    size of the last cache was written in between).

    A call that is `LONG` beside that writing cannot tell them apart. It is timed once for both, and
    the same list stands in both. Of warm caches alone, what is `LONGISH` is long, and the rest
    has `ROW` calls a turn.
    """
    size = 2 * last_cache()
    writing = _writing_seconds(size)
    long = {name: [_seconds(run)] for name, run in runs.items()}
    least = (LONG if cold else LONGISH) * writing
    long = {name: taken for name, taken in long.items() if taken[0] > least}
    again = {
        name: runs[name]
        for name, taken in long.items()
        if _goes_on(len(taken), sum(taken), seconds, 3, most)
    }
    for name, taken in samples(again, seconds, most=most, warm=True, had=1).items():
        long[name] = long[name] + taken
    short = {name: run for name, run in runs.items() if name not in long}
    before: dict[str, Callable[[Run], object]] = {"warm": lambda run: (run(), run(), run())}
    if cold:
        swept = torch.zeros(size // 4)
        before["cold"] = lambda _: swept.add_(1)
    return {
        kind: samples(short, seconds, most=most, before=first, row=1 if cold else ROW) | long
        for kind, first in before.items()
    }


@cache
def _writing_seconds(size: int) -> float:
    """To write `size` bytes, which tells no more than what takes long: once is enough."""
    swept = torch.zeros(size // 4)
    return min(_seconds(lambda: swept.add_(1)) for _ in range(4))


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


class MultiplyAdds:
    """FLOP/s of the threads in use, from registers, two for each multiply-add: the most that has
    been seen, by the dtype of the factors. bf16 comes in pairs where `headrace info` says
    avx512_bf16, int8 as pairs of int16 there and where it says avx512_vnni; other levels, and
    other dtypes, multiply as fp32. again: seconds of every call but the first.
    """

    def __init__(self, again: float = 0.05, first: float = 0.2) -> None:
        self._most: dict[torch.dtype, float] = {}
        self._again, self._first = again, first

    def rate(self, dtype: torch.dtype) -> float:
        """Measured at every call, since a machine that is shared is not always at its best."""
        seconds = self._again if dtype in self._most else self._first
        threads = torch.get_num_threads()
        seen = 0.0
        while not seen:  # a process that was stopped for as long has seen nothing
            seen = 2 * _C.multiply_add_rate(DTYPES.index(dtype), seconds, threads)
        self._most[dtype] = max(seen, self._most.get(dtype, 0.0))
        return self._most[dtype]


def matmul_rate(size: int = 1536, seconds: float = 0.5) -> float:
    """FLOP/s of torch's own fp32 matrix product of this size."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / interleaved({"matmul": lambda: a @ b}, seconds)["matmul"]


def reader(size: float, turns: int = 1, again: float = 0.0, own: Tensor | None = None) -> Run:
    """Reads `size` bytes once, from huge pages where there are any, with every thread, or with one
    where that is quicker; to be timed beside a kernel. turns: how many calls it takes to come back
    to the same bytes. again: so many of the bytes lie where others do, and are read beside them.
    own: what the kernel reads. Where that is at least half of the bytes it is read in place of
    others, so that both find it in the same cache, and the rest as if it lay there too.
    """
    if own is not None and 2 * own.nbytes >= size:
        buffer, again = own, max(size - own.nbytes, 0)
        words = own.nbytes // 64 * 16
    else:
        words = -(-max(int(size - again), 4096) // 64) * 16
        buffer = huge(torch.empty(words * turns)).fill_(1)
    more = int(again) // 64 * 16
    first = buffer.data_ptr()
    starts = cycle(range(first, first + 4 * words * turns, 4 * words))

    def reading(threads: int) -> Run:
        return lambda: (_C.read_seconds(next(starts), words, more, threads), buffer)

    every = torch.get_num_threads()
    ways = {"one": reading(1), "every": reading(every)}
    if every == 1 or size > FEW:
        return ways["every"]
    taken = samples(ways, 0.01, before=lambda run: run())
    return ways[min(ways, key=lambda way: median(taken[way]))]
