# SPDX-License-Identifier: Apache-2.0
"""A loop is ours beside what one would do without us, over a size that grows: equality first, then
rounds in which everyone has a turn, for throughput, lag and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Told = Callable[[str], None]


@dataclass(frozen=True)
class Round:
    """One turn: seconds in all, units of work done, and of every answer the seconds that it took
    from when its input was there."""

    seconds: float
    units: float
    lags: Sequence[float]


@dataclass(frozen=True)
class Side:
    """One way to do the work. bytes: of what it keeps between its steps."""

    name: str
    run: Callable[[], Round]
    bytes: Callable[[], int]


@dataclass(frozen=True)
class Size:
    """One point. sides: ours first. error: how far ours is from what it must equal. notes: figures
    of this size beside those; close: to let go of it all."""

    at: int
    sides: Sequence[Side]
    error: Callable[[], float]
    tolerance: float
    notes: Callable[[], dict[str, float]] = dict
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Loop:
    """sizes: of a quick run or not, made one at a time. equals: what ours must equal. published:
    the ratio that others report, and of what. needs: a package that may not be there."""

    name: str
    title: str
    axis: str
    unit: str
    equals: str
    sizes: Callable[[bool], Iterator[Size]]
    rounds: int = 7
    published: tuple[float, str] | None = None
    needs: str = ""

    def turns(self, quick: bool) -> int:
        """How many are timed."""
        return 3 if quick else self.rounds


def clock(run: Callable[[], object], units: float, answers: int = 1) -> Round:
    """A round of one call that gives so many answers at once."""
    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    return Round(seconds, units, [seconds] * answers)


def measure(loop: Loop, quick: bool = False, told: Told | None = None) -> dict[str, Any]:
    """Everything of a loop, for JSON; lags in seconds. After a wrong result nothing is timed."""
    points = []
    for size in loop.sizes(quick):
        try:
            points.append(_point(loop, size, loop.turns(quick), told))
        finally:
            size.close()
    return {
        "name": loop.name, "title": loop.title, "axis": loop.axis, "unit": loop.unit,
        "equals": loop.equals, "published": loop.published, "points": points,
    }  # fmt: skip


def rounds(loop: Loop, size: Size, many: int, told: Told | None) -> dict[str, list[Round]]:
    """So many turns of every side, which take turns in going first."""
    taken: dict[str, list[Round]] = {side.name: [] for side in size.sides}
    for turn in range(-1, many):  # the first warms up
        for side in size.sides if turn % 2 else reversed(size.sides):
            if told is not None:
                told(f"{loop.name}: {loop.axis} {size.at:,}, turn {turn + 1} of {many}")
            done = side.run()
            if turn >= 0:
                taken[side.name].append(done)
    return taken


def _point(loop: Loop, size: Size, many: int, told: Told | None) -> dict[str, Any]:
    error = size.error()
    point: dict[str, Any] = {
        "at": size.at, "error": error, "tolerance": size.tolerance, "ok": error <= size.tolerance,
        "sides": {}, "speedup": {},
    }  # fmt: skip
    if not point["ok"]:
        return point
    taken = rounds(loop, size, many, told)
    for side in size.sides:
        point["sides"][side.name] = _figures(taken[side.name]) | {"bytes": side.bytes()}
    ours, *others = (side.name for side in size.sides)
    for name in others:
        ratios = [
            (a.units / a.seconds) / (b.units / b.seconds)
            for a, b in zip(taken[ours], taken[name], strict=True)
        ]
        point["speedup"][name] = {
            "median": median(ratios), "least": min(ratios), "most": max(ratios),
        }  # fmt: skip
    return point | {"notes": size.notes()}


def _figures(rounds: list[Round]) -> dict[str, float]:
    lags = sorted(lag for done in rounds for lag in done.lags)
    return {
        "throughput": median(done.units / done.seconds for done in rounds),
        "lag_p50": lags[len(lags) // 2],
        "lag_p99": lags[min(len(lags) - 1, len(lags) * 99 // 100)],
        "answers": len(lags),
    }
