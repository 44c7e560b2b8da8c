# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..seat import Job, Seat
from .policy import Policy

if TYPE_CHECKING:
    from ..desk import Desk


@dataclass
class Retention(Policy):
    """Keeps pages of agents across the gaps in which their tools run, by predicted reuse (SAGA).

    The group of an event names the tool that its answer calls. From the gaps that were seen after a
    tool, a quantile of them says when a stream will be back; from how many came back at all,
    whether it will. When pages run short, the stream that is expected back last goes first, one not
    expected back before all others. hits: turns that found the pages of their stream; misses: those
    that read it again.
    """

    quantile: float = 0.5
    prior: float = 1.0
    hits: int = field(init=False, repr=False, default=0)
    misses: int = field(init=False, repr=False, default=0)
    _gaps: dict[str, list[float]] = field(init=False, repr=False, default_factory=dict)
    _ends: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    _left: dict[str, tuple[float, str]] = field(init=False, repr=False, default_factory=dict)

    def victims(self, desk: Desk, job: Job) -> Iterator[Seat]:
        busy = {other.seat.name for other in desk.ready}
        idle = [seat for seat in desk.seats.values() if seat.name not in busy]
        yield from sorted(idle, key=lambda seat: (-self.back(seat.name, desk), seat.name))
        yield from (seat for seat in super().victims(desk, job) if seat.name in busy)

    def back(self, name: str, desk: Desk) -> float:
        """When a stream is expected to need its pages again; inf if not."""
        if name not in self._left:
            return desk.now
        at, tool = self._left[name]
        gaps = self._gaps.get(tool, [])
        if self._ends.get(tool, 0) > len(gaps):
            return math.inf
        waited = desk.now - at
        longer = [gap for gap in gaps if gap >= waited]
        if not longer:  # none ever took so long: as long again, for want of better
            return desk.now + max(waited, self.prior if not gaps else 0.0)
        return at + longer[min(len(longer) - 1, int(self.quantile * len(longer)))]

    def arrived(self, job: Job, desk: Desk) -> None:
        name = job.seat.name
        left = self._left.pop(name, None)
        if left is not None:
            at, tool = left
            gaps = self._gaps.setdefault(tool, [])
            gaps.append(job.outcome.arrived - at)
            gaps.sort()
        if job.seat.text.length:
            found = job.seat.stream.tokens == job.seat.text.length
            self.hits += found
            self.misses += not found

    def closed(self, name: str, desk: Desk) -> None:
        if name in self._left:
            _, tool = self._left.pop(name)
            self._ends[tool] = self._ends.get(tool, 0) + 1

    def finished(self, job: Job, desk: Desk) -> None:
        self._left[job.seat.name] = desk.now, job.event.group
