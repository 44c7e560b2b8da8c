# SPDX-License-Identifier: Apache-2.0
"""Gates: when a stream speaks.

A gate looks at one `Signal` per tick and says yes or no. What it remembers between ticks is in its
fields and nowhere else, so that a copy of it goes on from the same moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from ..errors import bad_type, bad_value

T = TypeVar("T")


@dataclass(frozen=True)
class Signal:
    """What a tick has to show. A gate asks for what it needs and refuses a signal without it.

    query: whether somebody asked. read, written: tokens that came in and went out so far. logits
    fp32 [V]: of the next token. scores: of the heads that some models have for this. perplexity: of
    the reply that stands, under what is seen now. dropped: share of the tick's tokens that a filter
    took away. tail: the newest tokens.
    """

    query: bool = False
    read: int = 0
    written: int = 0
    logits: Tensor | None = None
    scores: Sequence[float] | None = None
    perplexity: float | None = None
    dropped: float | None = None
    tail: Sequence[int] = ()
    time: float | None = None


class Gate:
    """Says at every tick whether to speak."""

    def __call__(self, signal: Signal) -> bool:
        raise NotImplementedError


@dataclass
class OnQuery(Gate):
    """When asked, and only then (StreamingLLM, ReKV)."""

    def __call__(self, signal: Signal) -> bool:
        return signal.query


@dataclass
class Every(Gate):
    """At every n-th tick, or at the first of every so many `seconds` (StreamingVLM: 1).

    seconds: in place of ticks; spans of time count from 0, and the one it begins in is not over.
    """

    ticks: int | None = None
    seconds: float | None = None
    seen: int = 0

    def __post_init__(self) -> None:
        if (self.ticks is None) == (self.seconds is None):
            raise bad_value("Every", "ticks", "ticks or seconds", "none or both")
        if self.ticks is not None:
            _at_least("Every", "ticks", self.ticks, 1)
        elif self.seconds is not None and not 0 < self.seconds < math.inf:
            raise bad_value("Every", "seconds", "more than 0", self.seconds)

    def __call__(self, signal: Signal) -> bool:
        if self.ticks is not None:
            self.seen += 1
            return self.seen % self.ticks == 0
        assert self.seconds is not None
        before, self.seen = self.seen, int(_shown(self, "time", signal.time) // self.seconds)
        return self.seen > before


@dataclass
class WaitK(Gate):
    """After k tokens one, and then one for each that comes (Ma et al., 2019; GPE).

    What counts as read and written, tokens or words, is the caller's. ended: set it when the input
    is over; from then on it says yes.
    """

    k: int
    ended: bool = False

    def __post_init__(self) -> None:
        _at_least("WaitK", "k", self.k, 1)

    def __call__(self, signal: Signal) -> bool:
        return self.ended or self.due(signal) > 0

    def due(self, signal: Signal) -> int:
        """How many may be written before more is read, where the input comes several at a time."""
        return max(0, signal.read - signal.written - self.k + 1)


@dataclass
class TokenProb(Gate):
    """When the token that means silence is not the likeliest, or less likely than `threshold`.

    VideoLLM-online: below the threshold the frame separator does not count, and anything else that
    is likeliest begins a reply; 0.725 there.
    """

    token: int
    threshold: float = 0.725

    def __post_init__(self) -> None:
        _at_least("TokenProb", "token", self.token, 0)
        if not 0 <= self.threshold <= 1:
            raise bad_value("TokenProb", "threshold", "0 to 1", self.threshold)

    def __call__(self, signal: Signal) -> bool:
        logits = _shown(self, "logits", signal.logits)
        if self.token >= len(logits):
            raise bad_value("TokenProb", "token", f"a token below {len(logits)}", self.token)
        silent = float(logits.double().softmax(-1)[self.token])
        return silent < self.threshold or int(logits.argmax()) != self.token


@dataclass
class HeadSum(Gate):
    """When the scores of a tick, added up, say so (MMDuet's informative and relevance heads).

    rule "now": above `threshold`. "running": when the sum over ticks is, which begins again at 0
    then. "z": when above mean + threshold * standard deviation of the `recent` ticks before, of
    which there are `first` at least.
    """

    threshold: float
    rule: str = "now"
    recent: int = 16
    first: int = 2
    sums: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rule not in ("now", "running", "z"):
            raise bad_value("HeadSum", "rule", "now, running or z", repr(self.rule))
        _at_least("HeadSum", "recent", self.recent, 2)
        _at_least("HeadSum", "first", self.first, 1)
        if self.first > self.recent:
            raise bad_value("HeadSum", "first", f"at most recent, {self.recent}", self.first)

    def __call__(self, signal: Signal) -> bool:
        score = math.fsum(_shown(self, "scores", signal.scores))
        if self.rule == "now":
            return score > self.threshold
        if self.rule == "running":
            total = math.fsum([*self.sums, score])
            fires = total > self.threshold
            self.sums = [] if fires else [total]
            return fires
        before, self.sums = self.sums, [*self.sums, score][-self.recent :]
        if len(before) < self.first:
            return False
        mean = math.fsum(before) / len(before)
        spread = math.sqrt(math.fsum((s - mean) ** 2 for s in before) / len(before))
        return score > mean + self.threshold * spread


@dataclass
class PplRise(Gate):
    """When the standing reply fits less well than at its birth, `ratio` times (LiveStar: 1.03).

    Tell it the perplexity of a new reply by setting `born`; without a reply it says yes.
    """

    ratio: float = 1.03
    born: float | None = None

    def __post_init__(self) -> None:
        if not self.ratio >= 1:
            raise bad_value("PplRise", "ratio", "1 or more", self.ratio)

    def __call__(self, signal: Signal) -> bool:
        if self.born is None:
            return True
        return _shown(self, "perplexity", signal.perplexity) > self.ratio * self.born


@dataclass
class SceneCut(Gate):
    """One tick after a valley of the drop ratio: what changes much is dropped little.

    TimeChat-Online; its demo, which has the whole video, takes the tenth of the frames that have
    the lowest ratios. depth: by how much the valley lies below both of its neighbours, at least.
    """

    depth: float = 0.0
    last: list[float] = field(default_factory=list)

    def __call__(self, signal: Signal) -> bool:
        self.last = [*self.last, _shown(self, "dropped", signal.dropped)][-3:]
        if len(self.last) < 3:
            return False
        before, here, after = self.last
        return before - here > self.depth and after - here > self.depth


@dataclass
class Marker(Gate):
    """When the newest tokens are the marker (StreamingThinker's end of a unit)."""

    tokens: Sequence[int]

    def __post_init__(self) -> None:
        if not len(self.tokens):
            raise bad_value("Marker", "tokens", "at least one token", "none")

    def __call__(self, signal: Signal) -> bool:
        return list(signal.tail[-len(self.tokens) :]) == list(self.tokens)


def _shown(gate: Gate, name: str, value: T | None) -> T:
    if value is None:
        raise bad_value(type(gate).__name__, "signal", f"one with {name}", "none")
    return value


def _at_least(gate: str, name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_type(gate, name, "a whole number", repr(value))
    if value < least:
        raise bad_value(gate, name, f"{least} or more", value)
