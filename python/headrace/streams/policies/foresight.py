# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..events import READING
from ..seat import Job
from .retention import Retention

if TYPE_CHECKING:
    from ..desk import Desk


@dataclass
class Foresight(Retention):
    """Retention that knows the future: the bar for those that must guess, and no more than that.

    Reads from the trace when each stream will be back, and gives up the one that is back last
    (Belady, 1966), which is the optimum where streams are of one size.
    """

    _over: dict[str, tuple[int, float]] = field(init=False, repr=False, default_factory=dict)

    def back(self, name: str, desk: Desk) -> float:
        if name not in self._over:
            return desk.now
        last, at = self._over[name]
        for i, event in enumerate(desk.run.events):
            if event.stream == name and i > last and event.kind in READING:
                return at + event.time if event.after is not None else event.time
        return math.inf

    def finished(self, job: Job, desk: Desk) -> None:
        super().finished(job, desk)
        self._over[job.seat.name] = job.outcome.index, job.outcome.done
