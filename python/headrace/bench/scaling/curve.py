# SPDX-License-Identifier: Apache-2.0
"""Seconds over the amount of work, and the slope of that where both axes are logarithmic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..timing import quartiles

Told = Callable[[str], None]
Point = tuple[str, int, list[float]]
"""Of which series, how much work, and seconds of each time that it was done."""


@dataclass(frozen=True)
class Work:
    """One amount of work that grows. seconds: what one second on the other axis is of. points: of
    a quick run or not; raises ValueError after a wrong result. ideal: the slope to compare with."""

    name: str
    title: str
    axis: str
    seconds: str
    points: Callable[[bool, Told], Iterator[Point]]
    ideal: float = 0.0


@dataclass(frozen=True)
class Fit:
    """seconds ~ work ** slope. error: standard error of the slope, 0 from two points alone."""

    slope: float
    error: float


def fit(work: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Least squares of the logarithms. Raises ValueError for fewer than two amounts of work."""
    x, y = ([math.log(v) for v in each] for each in (work, seconds))
    if len(set(x)) < 2:
        raise ValueError(f"fit(work): expected two amounts or more, got {sorted(set(work))}")
    n = len(x)
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = math.fsum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return Fit(slope, math.sqrt(rest / (n - 2) / spread) if n > 2 else 0.0)


def measure(work: Work, quick: bool = False, told: Told | None = None) -> dict[str, Any]:
    """Every series with its slope, over all of it and over its last factor of sixteen, for JSON."""
    found: dict[str, dict[int, list[float]]] = {}
    for name, at, seconds in work.points(quick, told or (lambda _: None)):
        found.setdefault(name, {}).setdefault(at, []).extend(seconds)
    series = []
    for name, by in found.items():
        amounts = sorted(by)
        middle = [median(by[a]) for a in amounts]
        row: dict[str, Any] = {
            "name": name, "at": amounts, "seconds": middle,
            "half": [quartiles(by[a]) for a in amounts],
        }  # fmt: skip
        if len(amounts) > 1:
            whole = fit(amounts, middle)
            late = [i for i, a in enumerate(amounts) if a * 16 >= amounts[-1]]
            row |= {"slope": whole.slope, "slope_error": whole.error}
            if len(late) > 1:
                row["last_slope"] = fit([amounts[i] for i in late], [middle[i] for i in late]).slope
        series.append(row)
    return {
        "name": work.name, "title": work.title, "axis": work.axis, "of": work.seconds,
        "ideal": work.ideal, "series": series,
    }  # fmt: skip
