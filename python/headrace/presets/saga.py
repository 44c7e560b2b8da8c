# SPDX-License-Identifier: Apache-2.0
"""SAGA: pages of an agent stay across the gaps in which its tools run, by predicted reuse.

SAGA (2025), its paper: the workflow predicts when a session is back, and so what to keep. Chosen
here: the median of the gaps seen after each tool, 1 s before any was seen; the stream expected back
last goes first. Its affinity and work stealing are between workers, of which an engine has one; its
fair share on completion time is not part of this.

Checked: the share of turns that find their pages, beside recency and beside foresight, which reads
the future from the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..streams import Server
from ..streams.desk import Desk
from ..streams.engine import Model
from ..streams.policies import Foresight, Policy, Retention
from ..streams.seat import Job, Seat
from ..streams.traces import agents
from .given import numbers, shares
from .proof import Check, Preset
from .scheduling import Costless, ran, server

__all__ = ["saga"]

SEEDS = range(2)


def saga(model: Model, *, quantile: float = 0.5, prior: float = 1.0, **options: Any) -> Server:
    """A server that keeps the pages of streams that will be back soon.

    quantile: of the gaps seen after each tool, by which the next is guessed. prior: seconds that
    one is taken to last before. Options as in `headrace.streams.Server` and `headrace.wrap`, whose
    errors it raises; memory: what a stream keeps, everything unless it says less. ValueError where
    quantile is not between 0 and 1 or prior is negative.
    """
    shares("saga", quantile=quantile)
    numbers("saga", prior=prior)
    return server(model, Retention(quantile, prior), **options)


class Recency(Retention):
    """The longest unused goes first; it only counts."""

    def victims(self, desk: Desk, job: Job) -> Iterator[Seat]:
        return Policy.victims(self, desk, job)


def tried(kind: Callable[[], Retention], *, pages: int = 30) -> tuple[float, float]:
    """Of turns after the first, the share that found what their stream had read; and the tokens
    that were read again, of all that were read."""
    hits = misses = read = least = 0
    for seed in SEEDS:
        trace = agents(seed, programs=12, turns=6, spread=4.0)
        run = ran(Costless(), trace, kind(), pages=pages, budget=64)
        assert isinstance(run.policy, Retention)
        hits, misses = hits + run.policy.hits, misses + run.policy.misses
        read += run.tokens
        least += sum(len(event.tokens) + event.max_new for event in trace)
    return hits / (hits + misses), 1 - least / read


def check(model: Model) -> list[Check]:
    """Order alone: the model is one that costs nothing."""
    (ours, again), (recent, more), (best, _) = map(tried, (Retention, Recency, Foresight))
    trace = agents(programs=6, turns=3, vocab=model.config.vocab)
    tight, roomy = (ran(model, trace, Retention(), pages=n) for n in (18, 1000))
    changed = sum(roomy.outputs[i] != said for i, said in tight.outputs.items())
    return [
        Check("hit rate of recency, less its own", recent - ours, 0),
        Check("hit rate of foresight, less its own", best - ours, 0.1),
        Check("tokens read again, over those of recency", again / more, 0.95),
        Check("answers that differ from those with room for all", changed, 0),
    ]


PRESET = Preset("saga", "SAGA (2025), its paper", saga, check, kind="scheduler")
