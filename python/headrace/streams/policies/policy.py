# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ..clock import Work
from ..seat import Job, Seat

if TYPE_CHECKING:
    from ..desk import Desk


class Share(NamedTuple):
    """Tokens of a step that go to a job."""

    job: Job
    tokens: int


@dataclass
class Policy:
    """Picks what goes into each step, and who gives pages up when too few are free.

    Most only say in what order jobs come. Fields are plain data, so that a record can hold them;
    what a policy learns on the way is fields that `__init__` does not take. It may read everything
    of the run (`desk`) but the length of answers, `Event.max_new`, which a user's events would not
    tell either, and the clock: a decision depends on what was recorded, or it cannot be replayed.
    """

    def plain(self) -> dict[str, Any]:
        """What its `__init__` takes, as plain data."""
        made = {field.name: getattr(self, field.name) for field in fields(self) if field.init}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in made.items()}

    def order(self, job: Job, desk: Desk) -> Any:
        """What jobs are sorted by, first to be served first."""
        return job.key

    def pick(self, desk: Desk) -> list[Share]:
        """What goes into this step, most important first: as much of each job as the budget has."""
        return fill(sorted(desk.ready, key=lambda job: self.order(job, desk)), desk.budget)

    def victims(self, desk: Desk, job: Job) -> Iterator[Seat]:
        """Who gives pages up for a job: idle streams, the longest unused first, then those that
        come after it, the last first."""
        busy = {other.seat.name for other in desk.ready}
        idle = [seat for seat in desk.seats.values() if seat.name not in busy]
        yield from sorted(idle, key=lambda seat: (seat.used, seat.name))
        for other in sorted(desk.ready, key=lambda job: self.order(job, desk), reverse=True):
            if other is job:
                return
            yield other.seat

    def swaps(self, seat: Seat, desk: Desk) -> bool:
        """Whether to copy its pages out; otherwise its tokens are read again."""
        return False

    def wakes(self, desk: Desk) -> float:
        """When to be asked again, if it picks nothing though something is ready."""
        return math.inf

    def arrived(self, job: Job, desk: Desk) -> None:
        """A job has arrived."""

    def finished(self, job: Job, desk: Desk) -> None:
        """A job is over."""

    def closed(self, name: str, desk: Desk) -> None:
        """A stream is closed."""

    def stepped(self, work: Work, seconds: float, desk: Desk) -> None:
        """A step took so long."""


def fill(jobs: list[Job], budget: int) -> list[Share]:
    """The jobs in turn, each as much as it has and the budget still allows."""
    shares = []
    for job in jobs:
        tokens = min(job.left, budget)
        if tokens:
            shares.append(Share(job, tokens))
            budget -= tokens
    return shares
