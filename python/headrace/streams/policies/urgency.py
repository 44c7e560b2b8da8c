# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..seat import Job
from .lengths import Lengths
from .policy import Policy

if TYPE_CHECKING:
    from ..desk import Desk


@dataclass
class Urgency(Policy):
    """Most urgent first: remaining work over remaining slack (HexGen-Text2SQL).

    Work: tokens still to be read or said, of it and of what follows under its deadline, at the pace
    of late, seconds. Slack: until the deadline
    of the whole. An overdue job has no slack left and is the most urgent of all, the longest
    overdue first; one without a deadline comes last. quantile: of the lengths seen in its group,
    the guess of how much it will say; prior: the guess before any was seen.
    """

    quantile: float = 0.5
    prior: int = 16
    lengths: Lengths = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.lengths = Lengths(self.quantile, self.prior)

    def order(self, job: Job, desk: Desk) -> Any:
        work = (job.left + self.lengths.remaining(job) + self.lengths.later(job)) * (
            desk.rate or 1.0
        )
        slack = job.until - desk.now
        if slack <= 0:
            return -math.inf, slack, job.key
        return -work / slack, slack, job.key

    def finished(self, job: Job, desk: Desk) -> None:
        self.lengths.learn(job)

    def closed(self, name: str, desk: Desk) -> None:
        self.lengths.closed(name)
