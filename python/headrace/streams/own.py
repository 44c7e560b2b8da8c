# SPDX-License-Identifier: Apache-2.0
"""What a stream was opened with, in words, for a file of it to be resumed with the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import bad_value
from ..memory import Plan, Region
from . import opening
from .lane import Lane, Lanes, check_lanes, connected
from .positions import PerLane, Positions
from .stream import Stream

if TYPE_CHECKING:
    from .engine import Engine

ONE = ""
"""What a stream without lanes is called."""


@dataclass(frozen=True)
class Opened:
    """plans: by lane. lanes, positions: of a stream of several."""

    plans: Mapping[str, Plan]
    lanes: tuple[Lane, ...]
    positions: Positions

    @staticmethod
    def of(
        engine: Engine,
        one: bool,
        memory: Region | None,
        positions: Positions | None,
        lanes: Sequence[Lane] | None,
    ) -> Opened:
        """As `Engine.open`, where it is one, or `Engine.open_lanes` would have it."""
        if one:
            plan = opening.plan(engine, "open", memory, positions)
            return Opened({ONE: plan}, (), positions or engine.positions)
        mine = engine.lanes if lanes is None else tuple(lanes)
        places = positions or (engine.positions if lanes is None else PerLane())
        check_lanes(mine, places, "resume")
        plans = {lane.name: opening.plan(engine, "resume", lane.memory, places) for lane in mine}
        return Opened(plans, mine, places)

    def check(self, said: Mapping[str, Any]) -> None:
        """ValueError where a file says otherwise."""
        mine = _words(self.plans, self.lanes, self.positions)
        for what, want in said.items():
            if mine[what] != want:
                hint = "pass what the stream was opened with"
                raise bad_value("resume", what, want, mine[what], hint)

    def joined(self, engine: Engine, streams: Mapping[str, Stream]) -> Lanes:
        """The lanes as one stream."""
        assert isinstance(self.positions, PerLane)
        joined = connected(streams, self.lanes, self.positions)
        return Lanes(engine, joined, self.lanes, self.positions)


def said(stream: Stream | Lanes) -> dict[str, Any]:
    """For `Opened.check`."""
    if isinstance(stream, Lanes):
        plans = {name: stream[name]._lease.table.plan for name in stream}
        return _words(plans, stream.lanes, stream.positions)
    return _words({ONE: stream._lease.table.plan}, (), None)


def _words(
    plans: Mapping[str, Plan], lanes: tuple[Lane, ...], positions: Positions | None
) -> dict[str, Any]:
    words: dict[str, Any] = {"memory": {name: repr(plan) for name, plan in plans.items()}}
    if lanes:
        words = {"lanes": repr(lanes), "positions": repr(positions)} | words
    return words
