# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from bisect import bisect_right, insort

from ..seat import Job

KEEP = 512
"""Samples of a group that are remembered, the newest."""


class Lengths:
    """How much is still to come, learnt from what is over, by group; guesses are quantiles.

    An answer that has said n tokens is one of those longer than n, so the guess moves, and what it
    leaves open shrinks, as tokens come. Events that share the deadline of a first one (`since`) are
    a chain; what followed in others of its group is expected to follow here.
    """

    def __init__(self, quantile: float, prior: int) -> None:
        self._quantile, self._prior = quantile, prior
        self._said: dict[str, _Samples] = {}
        self._later: dict[tuple[str, int], _Samples] = {}  # tokens after the i-th of a chain
        self._chains: dict[str, dict[int, tuple[str, list[int]]]] = {}  # by stream and first event

    def learn(self, job: Job) -> None:
        """What a finished job says about its group."""
        event, out = job.event, job.outcome
        if event.kind != "say" or out.state != "done":
            return
        self._said.setdefault(event.group, _Samples()).add(len(out.said))
        chains = self._chains.setdefault(out.stream, {})
        first = out.index if event.since is None else event.since
        chains.setdefault(first, (event.group, []))[1].append(len(event.tokens) + len(out.said))

    def closed(self, name: str) -> None:
        """The chains of a stream are over."""
        for group, sizes in self._chains.pop(name, {}).values():
            for i in range(len(sizes)):
                self._later.setdefault((group, i), _Samples()).add(sum(sizes[i + 1 :]))

    def known(self, group: str) -> int:
        """Answers that guesses about a group rest on."""
        return len(self._said[group]) if group in self._said else 0

    def total(self, group: str, said: int = 0, quantile: float | None = None) -> int:
        """The length that this share of those longer than `said` do not exceed."""
        quantile = self._quantile if quantile is None else quantile
        found = self._said[group].quantile(quantile, said) if group in self._said else None
        return max(self._prior, said + 1) if found is None else found

    def remaining(self, job: Job, quantile: float | None = None) -> int:
        """Tokens that a job is guessed to have still to say."""
        said = len(job.outcome.said)
        if job.event.kind != "say" or (job.started and job.ended):
            return 0
        return self.total(job.event.group, said, quantile) - said

    def later(self, job: Job, quantile: float | None = None) -> int:
        """Tokens that are guessed to follow it under the same deadline."""
        event, out = job.event, job.outcome
        first = out.index if event.since is None else event.since
        group, sizes = self._chains.get(out.stream, {}).get(first, (event.group, []))
        known = self._later.get((group, len(sizes)))
        quantile = self._quantile if quantile is None else quantile
        return (known.quantile(quantile, -1) or 0) if known is not None else 0


class _Samples:
    """Numbers in the order of their coming, and sorted."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._sorted: list[int] = []

    def __len__(self) -> int:
        return len(self._came)

    def add(self, value: int) -> None:
        self._came.append(value)
        insort(self._sorted, value)
        if len(self._came) > KEEP:
            self._sorted.remove(self._came.pop(0))

    def quantile(self, q: float, above: int) -> int | None:
        """Of those above a number; None when there are none."""
        more = self._sorted[bisect_right(self._sorted, above) :]
        return more[min(len(more) - 1, int(q * len(more)))] if more else None
