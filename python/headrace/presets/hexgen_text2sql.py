# SPDX-License-Identifier: Apache-2.0
"""HexGen-Text2SQL: the request that is most urgent goes first, remaining work over remaining slack.

HexGen-Text2SQL (2025), known here from its abstract: queries are chains of model calls under one
deadline. Chosen here: work is tokens still to read and to say, of the call and of what is expected
to follow it, at the pace of late; what is overdue is the most urgent. Its dispatch over workers of
different speed has no place in one engine.

Checked: the order of every step of a recorded trace against the formula, reckoned apart.
"""

from __future__ import annotations

import math
from typing import Any

from ..streams import Server
from ..streams.desk import Desk
from ..streams.engine import Model
from ..streams.policies import Arrival, Share, Urgency
from ..streams.seat import Job
from ..streams.traces import services
from .given import counts, shares
from .proof import Check, Preset
from .scheduling import differing, ran, server

__all__ = ["hexgen_text2sql"]


def hexgen_text2sql(
    model: Model, *, quantile: float = 0.5, prior: int = 16, **options: Any
) -> Server:
    """A server that serves the most urgent first.

    quantile: of the lengths seen, by which those to come are guessed; prior: tokens that one is
    taken to have before. Options as in `headrace.streams.Server` and `headrace.wrap`, whose errors
    it raises; memory: what a stream keeps, everything unless it says less. ValueError where
    quantile is not between 0 and 1 or prior is below 1.
    """
    shares("hexgen_text2sql", quantile=quantile)
    counts("hexgen_text2sql", prior=prior)
    return server(model, Urgency(quantile, prior), **options)


def check(model: Model, *, requests: int = 20) -> list[Check]:
    """A trace of single calls and of chains, at overload."""
    trace = services(requests=requests, rate=60, vocab=model.config.vocab)
    run, fcfs = (ran(model, trace, p) for p in (_Watched(), Arrival()))
    assert isinstance(run.policy, _Watched)
    return [
        Check(
            "steps that read a less urgent request before a more urgent one", run.policy.wrong, 0
        ),
        Check("steps of a single request only, of all", run.policy.single / len(run.steps), 0.5),
        Check("answers that differ from those of arrival order", differing(run, fcfs), 0),
    ]


class _Watched(Urgency):
    """Reckons the urgency of what it chose from the trace, and counts what is out of order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wrong = self.single = 0

    def pick(self, desk: Desk) -> list[Share]:
        shares = super().pick(desk)
        order = [self._urgency(share.job, desk) for share in shares]
        waits = [job for job in desk.ready if all(job is not share.job for share in shares)]
        after = [self._urgency(job, desk) for job in waits]
        self.wrong += order != sorted(order, reverse=True)
        self.wrong += bool(after) and max(after) > min(order)
        self.single += len(order) == 1
        return shares

    def _urgency(self, job: Job, desk: Desk) -> tuple[float, float]:
        tokens = job.left + _to_say(job, desk) + _to_follow(job, desk)
        slack = job.until - desk.now
        rate = desk.rate or 1.0
        return (math.inf, -slack) if slack <= 0 else (tokens * rate / slack, 0.0)


def _over(desk: Desk) -> list[int]:
    """Events that said all they had to, and have read it."""
    waits = {job.outcome.index for seat in desk.seats.values() for job in seat.queue}
    return [o.index for o in desk.run.outcomes if o.said and o.index not in waits]


def _to_say(job: Job, desk: Desk) -> int:
    """The median answer of its group that is longer than what it has said, 16 before there is one,
    less what it has."""
    events, said = desk.run.events, len(job.outcome.said)
    if said == job.event.max_new:
        return 0
    known = [events[i].max_new for i in _over(desk) if events[i].group == job.event.group]
    more = sorted(length for length in known if length > said)
    return (more[len(more) // 2] if more else max(16, said + 1)) - said


def _to_follow(job: Job, desk: Desk) -> int:
    """The median, over chains of its group that are closed, of what followed where it is."""

    def first(i: int) -> int:
        since = events[i].since
        return i if since is None else since

    events, over, chains = desk.run.events, _over(desk), dict[int, list[int]]()
    for i in over:
        chains.setdefault(first(i), []).append(len(events[i].tokens) + events[i].max_new)
    closed = {
        event.stream
        for event, out in zip(events, desk.run.outcomes, strict=True)
        if event.kind == "close" and not math.isnan(out.done)
    }
    root = first(job.outcome.index)
    place = len(chains.get(root, ()))
    after = sorted(
        sum(sizes[place + 1 :])
        for i, sizes in chains.items()
        if events[i].stream in closed and events[i].group == events[root].group
        if place < len(sizes)
    )
    return after[len(after) // 2] if after else 0


PRESET = Preset(
    "hexgen_text2sql",
    "HexGen-Text2SQL (2025), its abstract",
    hexgen_text2sql,
    check,
    kind="scheduler",
)
