# SPDX-License-Identifier: Apache-2.0
"""Events of a run that have not arrived: by their time, or by when another is over."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

from .events import Event


class Coming:
    """Numbers of events. What waits for another has the time since that is over."""

    def __init__(self) -> None:
        self._timed: list[tuple[float, int]] = []
        self._after: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._timed) + sum(map(len, self._after.values()))

    @property
    def next(self) -> float:
        """When the next one arrives, in seconds since the run began; inf where none is timed."""
        return self._timed[0][0] if self._timed else math.inf

    def at(self, time: float, index: int) -> None:
        """An event that arrives at a time."""
        heapq.heappush(self._timed, (time, index))

    def after(self, other: int, index: int) -> None:
        """An event that waits for another, which is not over."""
        self._after.setdefault(other, []).append(index)

    def over(self, other: int, done: float, events: Sequence[Event]) -> None:
        """Another is over: what waits for it has a time now."""
        for i in self._after.pop(other, []):
            self.at(done + events[i].time, i)

    def due(self, now: float) -> Iterator[tuple[float, int]]:
        """Takes out what has arrived by now, in order: its time and number. What is added
        meanwhile counts."""
        while self.next <= now:
            yield heapq.heappop(self._timed)
