# SPDX-License-Identifier: Apache-2.0
"""JITServe: to each request just the bandwidth that its deadline needs, for the most goodput.

JITServe, SLO-aware serving with imprecise request information, 2025 (its paper). Lengths are
guessed by upper quantiles that tighten as tokens come; requests are of three classes: a pace per
token, a deadline, or a chain under one deadline. Chosen here: which requests to put off is decided
by Moore and Hodgson's rule on the 0.9 quantile of what they need.

Checked: on replayed traces of its three classes, at overload, against earliest deadline first and
arrival order; and, once lengths are known, against the median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from ..streams import Event, Outcome, Server
from ..streams.engine import Model
from ..streams.policies import Arrival, Deadline, JustInTime, Lengths, Policy
from ..streams.seat import Job
from ..streams.traces import services
from .given import counts, shares
from .proof import Check, Preset
from .scheduling import Costless, in_time, ran, server

__all__ = ["jitserve"]

SEEDS = range(3)


def jitserve(
    model: Model, *, quantile: float = 0.9, lower: float = 0.1, enough: int = 8, **options: Any
) -> Server:
    """A server that gives each request the bandwidth that its deadline needs.

    quantile: of the lengths seen, by which those to come are guessed; lower: the quantile that
    hopes. enough: lengths of a group before it is guessed by them alone. Options as in
    `headrace.streams.Server` and `headrace.wrap`, whose errors it raises; memory: what a stream
    keeps, everything unless it says less. ValueError where they are out of range.
    """
    shares("jitserve", quantile=quantile, lower=lower)
    counts("jitserve", enough=enough)
    return server(model, JustInTime(quantile, lower, enough), **options)


def check(model: Model, *, requests: int = 40) -> list[Check]:
    """Time alone: the model is one that costs nothing."""
    checks = []
    others = {"earliest deadline first": Deadline, "arrival order": Arrival}
    for rate in (30, 60):
        traces = [services(seed, requests=requests, rate=rate) for seed in SEEDS]
        own = _in_time(traces, JustInTime)
        for name, policy in others.items():
            claim = f"{rate} requests/s: share in time of {name}, less its own"
            checks.append(Check(claim, _in_time(traces, policy) - own, 0))
    traces = [services(seed, requests=2 * requests, rate=40) for seed in SEEDS]
    median = _in_time(traces, lambda: JustInTime(0.5))
    claim = "40 requests/s, twice as many: share in time of the median, less its own"
    checks.append(Check(claim, median - _in_time(traces, JustInTime), -0.01))
    return [*checks, Check("tokens at which the guess of a length got wider", _wider(), 0)]


def _in_time(traces: Sequence[Sequence[Event]], policy: Callable[[], Policy]) -> float:
    runs = [ran(Costless(), trace, policy()) for trace in traces]
    return sum(map(in_time, runs)) / len(runs)


def _wider() -> int:
    """The distance from a lower to an upper quantile of a length, as its tokens come."""
    lengths = Lengths(0.9, 16)
    for length in (2, 3, 5, 8, 13, 21, 34, 55):
        out = Outcome(0, "a", "say", 0.0, 1.0, said=[0] * length)
        lengths.learn(Job(Event(0.0, "a", "say"), out, None))  # type: ignore[arg-type]
    spread = [lengths.total("", n, 0.9) - lengths.total("", n, 0.1) for n in range(60)]
    return sum(after > before for before, after in pairwise(spread))


PRESET = Preset("jitserve", "JITServe (2025), its paper", jitserve, check, kind="scheduler")
