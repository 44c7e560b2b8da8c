# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .clock import Work
from .events import READING, Event
from .timing import Outcome, Timing

if TYPE_CHECKING:
    from .policies.policy import Policy


@dataclass
class Run:
    """What a run was asked, what it decided, and what came of it.

    readings: of its clock. log: per turn that decided something, what. outcomes: one per event, in
    their order. steps: work and seconds of each. settings: by which it can be repeated.
    """

    events: list[Event]
    outcomes: list[Outcome]
    log: list[dict[str, Any]]
    readings: list[float]
    steps: list[tuple[Work, float]]
    settings: dict[str, Any]
    policy: Policy | None = None

    @property
    def outputs(self) -> dict[int, list[int]]:
        """What was said, by event."""
        return {o.index: o.said for o in self.outcomes if o.kind == "say"}

    @property
    def seconds(self) -> float:
        return self.readings[-1] if self.readings else 0.0

    @property
    def tokens(self) -> int:
        """Tokens that steps read."""
        return sum(work.tokens for work, _ in self.steps)

    def timing(self, **of: str) -> Timing:
        """Figures over all events that take steps, or those of a stream=, kind= or group=."""
        chosen = [
            o
            for o in self.outcomes
            if o.kind in READING
            and all(getattr(self.events[o.index], name) == value for name, value in of.items())
        ]
        return Timing.of(chosen, self.seconds)
