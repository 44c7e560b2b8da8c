# SPDX-License-Identifier: Apache-2.0
"""How a run kept its deadlines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

STATES = ("done", "shortened", "skipped", "dropped", "refused", "killed")


@dataclass
class Outcome:
    """What became of an event; times in seconds from the start of the run.

    due: when it had to be done, inf without a deadline. first: when it first had an effect: the
    first token said, or for what says nothing, the end of the first step that read of it; nan if
    never. done: when it was over, or its last token said. state: done, shortened, skipped, dropped,
    refused or killed. said: the tokens, emitted: when each was. staleness: at each, the age of the
    newest input that the stream had read whole. read: tokens that steps read for it, again or for
    the first time. kept: of an update, the common prefix.
    """

    index: int
    stream: str
    kind: str
    arrived: float
    due: float
    pace: float | None = None
    first: float = math.nan
    done: float = math.nan
    state: str = "done"
    said: list[int] = field(default_factory=list)
    emitted: list[float] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    read: int = 0
    kept: int = 0

    @property
    def lag(self) -> float:
        """Seconds from its arrival until it was done."""
        return self.done - self.arrived

    @property
    def missed(self) -> bool:
        """Whether it had a deadline and was not done by then, whole or shortened."""
        if self.due == math.inf or self.state == "killed":
            return False
        if self.state not in ("done", "shortened") or math.isnan(self.first):
            return True
        if self.pace is None:
            return self.done > self.due
        return any(at > self.due + i * self.pace for i, at in enumerate(self.emitted))


@dataclass(frozen=True)
class Timing:
    """Figures over events; seconds, nan where there is nothing to measure.

    miss_rate: of events with a deadline, those not done in time. jitter: mean difference of the lag
    of an event and that of the one before it in its stream. staleness: age, when a token is said,
    of the newest input that its stream had read. first: until an event first had an effect.
    goodput: events done in time, of those with a deadline, per second of the run.
    """

    events: int
    deadlines: int
    missed: int
    miss_rate: float
    lag_p50: float
    lag_p99: float
    jitter: float
    staleness_p50: float
    staleness_p99: float
    first_p50: float
    first_p99: float
    goodput: float
    states: dict[str, int]

    @staticmethod
    def of(outcomes: Iterable[Outcome], seconds: float) -> Timing:
        every = list(outcomes)
        over = [o for o in every if o.state in ("done", "shortened")]
        lags = [o.lag for o in over]
        firsts = [o.first - o.arrived for o in over if not math.isnan(o.first)]
        stale = [age for o in over for age in o.staleness]
        dated = [o for o in every if o.due < math.inf and o.state != "killed"]
        missed = sum(o.missed for o in dated)
        return Timing(
            events=len(every),
            deadlines=len(dated),
            missed=missed,
            miss_rate=missed / len(dated) if dated else math.nan,
            lag_p50=percentile(lags, 50),
            lag_p99=percentile(lags, 99),
            jitter=_jitter(over),
            staleness_p50=percentile(stale, 50),
            staleness_p99=percentile(stale, 99),
            first_p50=percentile(firsts, 50),
            first_p99=percentile(firsts, 99),
            goodput=(len(dated) - missed) / seconds if seconds > 0 else math.nan,
            states={state: sum(o.state == state for o in every) for state in STATES},
        )


def percentile(values: Sequence[float], p: float) -> float:
    """The smallest value that p per cent of them do not exceed (nearest rank)."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(p / 100 * len(values)) - 1)]


def _jitter(outcomes: Iterable[Outcome]) -> float:
    last: dict[str, float] = {}
    steps = []
    for o in sorted(outcomes, key=lambda o: (o.arrived, o.index)):
        if o.stream in last:
            steps.append(abs(o.lag - last[o.stream]))
        last[o.stream] = o.lag
    return sum(steps) / len(steps) if steps else math.nan
