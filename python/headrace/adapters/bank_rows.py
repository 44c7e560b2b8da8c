# SPDX-License-Identifier: Apache-2.0
"""Which rank rows are free, and what a bank does best without."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

Extent = tuple[int, int]
"""Rank rows first to first + count - 1."""


class FreeRows:
    """Free rows of a pool of `count`. A request is refused only when fewer rows are free than it
    wants: where no run is long enough it gets several, and neighbours that come back join again.
    """

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self._runs: list[Extent] = [(0, count)] if count else []  # in order, never adjacent

    def take(self, count: int) -> list[Extent]:
        """The shortest run that holds `count` rows, its beginning; else the longest runs."""
        if count > self.free:
            raise ValueError(f"{count} rows of {self.free}")
        runs = self._runs
        fits = [run for run in runs if run[1] >= count]
        chosen = [min(fits, key=lambda run: run[1])] if fits else []
        if not fits:
            left = count
            for run in sorted(runs, key=lambda run: -run[1]):
                chosen.append(run)
                left -= run[1]
                if left <= 0:
                    break
        taken, left = [], count
        for run in chosen:
            first, size = run
            used = min(size, left)
            at = bisect_left(runs, run)
            if used == size:
                runs.pop(at)
            else:
                runs[at] = (first + used, size - used)
            taken.append((first, used))
            left -= used
        self.free -= count
        return sorted(taken)

    def give(self, extents: Iterable[Extent]) -> None:
        """Takes rows back."""
        runs = self._runs
        for first, size in extents:
            self.free += size
            at = bisect_left(runs, (first, 0))
            if at < len(runs) and runs[at][0] == first + size:
                size += runs.pop(at)[1]
            if at and sum(runs[at - 1]) == first:
                before = runs.pop(at - 1)
                first, size = before[0], before[1] + size
            insort(runs, (first, size))

    def runs(self) -> list[Extent]:
        """The free runs, in order."""
        return list(self._runs)


class Cached(Protocol):
    """What an eviction looks at. worth: set by `GreedyDual`."""

    rank: int
    cost: float  # seconds of a reload
    worth: float
    used: int


_C = TypeVar("_C", bound=Cached)


class GreedyDual:
    """Least recently used, weighted by what a reload costs: bytes times the time that a byte took.

    A use sets an adapter's worth to a floor plus its cost; the least worth is evicted, and raises
    the floor to its own. With equal costs that is LRU. An expensive adapter outlives cheap ones
    until as much cost as its own has gone by.

    Source: GreedyDual (Young, 1994), GreedyDual-Size (Cao and Irani, 1997).
    """

    def __init__(self) -> None:
        self.floor = 0.0
        self._clock = 0

    def use(self, one: Cached) -> None:
        """It was used now."""
        self._clock += 1
        one.worth, one.used = self.floor + one.cost, self._clock

    def choose(
        self, cached: Sequence[_C], enough: Callable[[Sequence[_C]], bool]
    ) -> list[_C] | None:
        """The fewest of the least worth that are `enough`; None where all of them are not."""
        order = [(one.worth, one.used, i) for i, one in enumerate(cached)]
        heapq.heapify(order)
        chosen: list[_C] = []
        while not enough(chosen):
            if not order:
                return None
            chosen.append(cached[heapq.heappop(order)[2]])
        return chosen

    def evicted(self, one: Cached) -> None:
        """It was evicted."""
        self.floor = max(self.floor, one.worth)
