# SPDX-License-Identifier: Apache-2.0
"""Events: what arrives for a stream, when, and by when it wants to be done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ..errors import bad_type, bad_value, unsupported

KINDS = (
    "open", "fork", "feed", "say", "update", "mark", "rollback", "close", "kill", "interrupt",
)  # fmt: skip
READING = ("feed", "say", "update")
"""Kinds that take steps of the model; the others are done as soon as it is their turn."""


@dataclass(frozen=True)
class Event:
    """Something that a stream is asked to do. Events of a stream are done in order.

    stream: its name. Of an engine with lanes, "name/lane" feeds, says or is interrupted; "name" is
    opened, killed or interrupted as a whole, and marked, rolled back or closed when every lane has
    done what it was asked before.
    time: seconds after the run began, or, with `after`, seconds after that event was over.
    kind: open; fork (a new stream that goes on from `parent`); feed (reads tokens); say (reads
    tokens, then says max_new, or up to `stop`); update (its whole text is now tokens); mark, and
    rollback to the latest mark; close. Two do not queue: kill (ends all that was asked of the
    stream, and closes it) and interrupt (ends what it says).
    deadline: seconds after its arrival, or after that of event `since`, until it must be done; with
    `pace`, until the first token, the i-th after it i paces later. group: what it has in common
    with others, such as an application or the tool that its answer calls; policies learn by it.
    """

    time: float
    stream: str
    kind: str
    tokens: tuple[int, ...] = ()
    max_new: int = 0
    stop: int | None = None
    temperature: float = 0.0
    seed: int = 0
    deadline: float | None = None
    pace: float | None = None
    after: int | None = None
    since: int | None = None
    parent: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise bad_value("Event", "kind", "one of " + ", ".join(KINDS), repr(self.kind))
        if not isinstance(self.stream, str) or not self.stream:
            raise bad_type("Event", "stream", "a name", repr(self.stream))
        for name in ("time", "deadline", "pace", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise bad_value("Event", name, "0 or more", value)
        if self.max_new < 0:
            raise bad_value("Event", "max_new", "0 or more", self.max_new)
        if self.pace is not None and self.deadline is None:
            raise bad_value("Event", "pace", "a deadline, for the first token", "none")
        tokens = self.tokens.encode() if isinstance(self.tokens, str) else self.tokens
        object.__setattr__(self, "tokens", tuple(map(int, tokens)))

    def plain(self) -> dict[str, Any]:
        """Its fields, those that differ from their default."""
        rows = asdict(self)
        always = [f.name for f in fields(self) if f.default is MISSING]
        default = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in rows.items() if k in always or v != default[k]}


def check_trace(events: Iterable[Event], before: int = 0) -> list[Event]:
    """The events as a list. ValueError when one refers to what is not before it.

    before: how many have been checked that come before these."""
    made = list(events)
    for i, event in enumerate(made, before):
        if not isinstance(event, Event):
            raise bad_type("serve", "trace", "events", type(event).__name__)
        for name in ("after", "since"):
            at = getattr(event, name)
            if at is not None and not 0 <= at < i:
                raise bad_value("serve", "trace", f"{name} before event {i}", at)
    return made


def total_tokens(events: Sequence[Event]) -> int:
    """Tokens that they bring, and may have said."""
    return sum(len(e.tokens) + e.max_new for e in events)


def check_lanes(event: Event, name: str, whole: bool) -> None:
    """NotImplementedError for what cannot be asked of a stream of lanes, or, unless it is to the
    whole of them, of one lane."""
    fits: tuple[str, ...] = ("feed", "say", "interrupt")
    if whole:
        fits = ("close", "kill", "mark", "rollback", "interrupt")
    if event.kind not in fits:
        what = "a stream of lanes" if whole else "one of its lanes"
        raise unsupported(
            "serve", "trace", f"{', '.join(fits)} of {what}", f"{event.kind} of {name!r}"
        )
