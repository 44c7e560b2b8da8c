# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..clock import Work
from ..seat import Job
from .lengths import Lengths
from .policy import Policy

if TYPE_CHECKING:
    from ..desk import Desk

LATE, SPARE, NOW = 2, 1, 0


@dataclass
class JustInTime(Policy):
    """To each job the bandwidth that its deadline needs, no sooner; the rest where it pays most.

    JITServe. A job needs steps: one for every token that it will say, by the quantile of its group,
    and one for every budget of tokens to read. Those whose steps leave less than `margin` times
    as many spare go now, the ones with least left first. Spare bandwidth goes to the most goodput
    for the tokens. What can no longer be in time, by the opposite
    quantile, waits for all others, and then goes in the order of arrival. What has no deadline
    shares the spare.
    """

    quantile: float = 0.9
    prior: int = 64
    margin: float = 1.0
    lengths: Lengths = field(init=False, repr=False)
    step: float = field(init=False, repr=False, default=0.0)  # seconds of one, of late

    def __post_init__(self) -> None:
        self.lengths = Lengths(self.quantile, self.prior)

    def order(self, job: Job, desk: Desk) -> Any:
        says = self.lengths.remaining(job)
        work = job.left + says
        if job.due == math.inf:
            return SPARE, work, job.key
        if job.event.pace is not None:
            says = min(says, 1)
        reads = -(-job.left // desk.budget)
        steps = says + reads
        slack = (job.due - desk.now) / self.step if self.step else math.inf
        least = reads + min(says, self.lengths.remaining(job, 1 - self.quantile))
        if slack < least:
            return LATE, 0, job.key
        return (NOW if slack < (1 + self.margin) * steps else SPARE), work, job.key

    def finished(self, job: Job, desk: Desk) -> None:
        self.lengths.learn(job)

    def stepped(self, work: Work, seconds: float, desk: Desk) -> None:
        self.step = 0.8 * self.step + 0.2 * seconds if self.step else seconds
