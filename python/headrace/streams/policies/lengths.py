# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from bisect import bisect_right, insort

from ..seat import Job

KEEP = 512
"""Lengths of a group that are remembered, the newest."""


class Lengths:
    """How long answers get, learnt from those that are over: a quantile, by group.

    An answer that has said n tokens is one of those longer than n, so the guess moves, and what it
    leaves open shrinks, as tokens come.
    """

    def __init__(self, quantile: float, prior: int) -> None:
        self._quantile, self._prior = quantile, prior
        self._seen: dict[str, tuple[list[int], list[int]]] = {}  # in order of coming, and sorted

    def learn(self, job: Job) -> None:
        """What a finished job says about its group."""
        if job.event.kind != "say" or job.outcome.state != "done":
            return
        came, ordered = self._seen.setdefault(job.event.group, ([], []))
        length = len(job.outcome.said)
        came.append(length)
        insort(ordered, length)
        if len(came) > KEEP:
            ordered.remove(came.pop(0))

    def total(self, group: str, said: int = 0, quantile: float | None = None) -> int:
        """The length that this share of those longer than `said` do not exceed."""
        quantile = self._quantile if quantile is None else quantile
        _, ordered = self._seen.get(group, ([], []))
        longer = ordered[bisect_right(ordered, said) :]
        if not longer:
            return max(self._prior, said + 1)
        return longer[min(len(longer) - 1, int(quantile * len(longer)))]

    def remaining(self, job: Job, quantile: float | None = None) -> int:
        """Tokens that a job is guessed to have still to say."""
        said = len(job.outcome.said)
        if job.event.kind != "say" or (job.started and job.ended):
            return 0
        return self.total(job.event.group, said, quantile) - said
