# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..clock import Work
from ..seat import Job
from .lengths import Lengths
from .policy import Policy, Share, fill

if TYPE_CHECKING:
    from ..desk import Desk


FADE = 0.98
"""What a measured step weighs after the next."""


@dataclass
class JustInTime(Policy):
    """As many requests in time as there is bandwidth for, and to each what its deadline needs.

    After JITServe. A request needs what it has to read and what it will say, and what then follows
    under its deadline, by an upper `quantile` of its group that moves as tokens come. Requests are
    taken in the order of their deadlines; when what was taken no longer fits before one, the one
    that needs most is put off, for it costs the most goodput (Moore and Hodgson's rule), and so is
    one that even the `lower` quantile puts past its own. Those that fit go first; what they leave
    goes to those put off, the least work first, to those without a deadline, and last to those that
    have already missed. Of a group of which fewer than `enough` answers are known, no more than the
    next token is counted.
    """

    quantile: float = 0.9
    lower: float = 0.1
    enough: int = 8
    lengths: Lengths = field(init=False, repr=False)
    _sums: list[float] = field(init=False, repr=False, default_factory=lambda: [0.0] * 5)

    def __post_init__(self) -> None:
        self.lengths = Lengths(self.quantile, 1)

    def pick(self, desk: Desk) -> list[Share]:
        jobs = sorted(desk.ready, key=lambda job: (job.due, job.key))
        free = [job for job in jobs if job.due == math.inf]
        lost = [job for job in jobs if _lost(job, desk.now)]
        fits, off = self._fit([job for job in jobs if job not in lost and job not in free], desk)
        off.sort(key=lambda job: (job.left + self._says(job, self.quantile), job.key))
        free.sort(key=lambda job: job.key)
        return fill(fits + off + free + lost, desk.budget)

    def _fit(self, jobs: list[Job], desk: Desk) -> tuple[list[Job], list[Job]]:
        """Those that fit, and those put off."""
        token = self._seconds(desk.budget) / desk.budget
        fits: list[tuple[int, Job]] = []
        off: list[Job] = []
        for job in jobs:
            alone = job.left * token + self._says(job, self.lower) * self._seconds(1)
            if desk.now + alone > job.due:
                off.append(job)
                continue
            fits.append((job.left + self._says(job, self.quantile), job))
            if desk.now + sum(work for work, _ in fits) * token > job.due:
                worst = max(fits, key=lambda fit: fit[0])
                fits.remove(worst)
                off.append(worst[1])
        return [job for _, job in fits], off

    def _says(self, job: Job, quantile: float) -> int:
        """Tokens that it has to say, and what follows it, by its deadline; with a pace, those up to
        the next are all read."""
        if job.event.pace is not None:
            return 0
        if self.lengths.known(job.event.group) < self.enough:
            return int(not job.started or not job.ended)
        return self.lengths.remaining(job, quantile) + self.lengths.later(job, quantile)

    def finished(self, job: Job, desk: Desk) -> None:
        self.lengths.learn(job)

    def closed(self, name: str, desk: Desk) -> None:
        self.lengths.closed(name)

    def stepped(self, work: Work, seconds: float, desk: Desk) -> None:
        new = (1.0, work.tokens, work.tokens**2, seconds, work.tokens * seconds)
        self._sums = [FADE * old + x for old, x in zip(self._sums, new, strict=True)]

    def _seconds(self, tokens: int) -> float:
        """Of a step of so many tokens, on the line through those of late."""
        n, x, xx, y, xy = self._sums
        if not n:
            return 0.0
        spread = n * xx - x * x
        slope = max(0.0, (n * xy - x * y) / spread) if spread > 1e-9 * n * xx else 0.0
        return max(0.0, (y - slope * x) / n) + slope * tokens


def _lost(job: Job, now: float) -> bool:
    """Whether it has missed its deadline, or with a pace, one of them."""
    said, pace = job.outcome.emitted, job.event.pace or 0.0
    return job.due < now or any(at > job.outcome.due + i * pace for i, at in enumerate(said))
