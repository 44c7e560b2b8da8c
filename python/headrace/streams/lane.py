# SPDX-License-Identifier: Apache-2.0
"""Lanes: several sequences of one stream that are read and written side by side.

A lane sees its own tokens, as its memory keeps them, and of every lane that it reads what was there
before the step began: tokens that come in the same step do not see one another across lanes. All
lanes of a step, of all streams, go through one model call; none copies the keys of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import bad_type, bad_value
from ..memory import Region
from .positions import PerLane, Positions
from .report import Report
from .stream import Mark, Stream
from .tokens import Tokens

if TYPE_CHECKING:
    from .engine import Engine

KINDS = ("in", "out", "latent")


@dataclass(frozen=True)
class Lane:
    """One sequence of a stream of several.

    reads: names of the lanes whose tokens its queries see beside its own. kind: "in" is fed from
    outside, "out" is what the stream says, "latent" is written and read by the model alone; the
    engine treats them alike. memory: what it keeps; None keeps what the engine's memory says.
    """

    name: str
    reads: Sequence[str] = ()
    kind: str = "in"
    memory: Region | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise bad_type("Lane", "name", "a name", repr(self.name))
        if isinstance(self.reads, str) or not all(isinstance(r, str) for r in self.reads):
            raise bad_type("Lane", "reads", "names of lanes", repr(self.reads))
        if self.kind not in KINDS:
            raise bad_value("Lane", "kind", "in, out or latent", repr(self.kind))
        if self.memory is not None and not isinstance(self.memory, Region):
            raise bad_type("Lane", "memory", "regions such as Window(252)", repr(self.memory))
        object.__setattr__(self, "reads", tuple(self.reads))


def check_lanes(lanes: Sequence[Lane], positions: Positions, op: str = "wrap") -> tuple[Lane, ...]:
    """The lanes, when they fit together. TypeError or ValueError naming what does not."""
    if isinstance(lanes, Lane) or not all(isinstance(lane, Lane) for lane in lanes):
        raise bad_type(op, "lanes", "a sequence of Lane", repr(lanes))
    lanes = tuple(lanes)
    names = [lane.name for lane in lanes]
    if len(set(names)) < len(names):
        raise bad_value(op, "lanes", "a name for each", ", ".join(names))
    for lane in lanes:
        for other in lane.reads:
            if other not in names or other == lane.name:
                expected = f"other lanes of {', '.join(names)}"
                raise bad_value(op, "lanes", expected, f"{lane.name} reads {other}")
    if lanes and not isinstance(positions, PerLane):
        hint = "distances between lanes are differences of positions"
        raise bad_value(op, "positions", "PerLane(...) with lanes", repr(positions), hint)
    for name, start in positions.starts.items() if isinstance(positions, PerLane) else ():
        if name not in names or (isinstance(start, str) and (start not in names or start == name)):
            expected = f"starts of lanes {', '.join(names) or '(none)'}"
            raise bad_value(op, "positions", expected, f"{name}={start!r}")
    return lanes


def connected(
    streams: Mapping[str, Stream], lanes: Sequence[Lane], positions: PerLane
) -> Mapping[str, Stream]:
    """The streams, each reading and following those of the lanes that its own names."""
    for lane in lanes:
        stream, start = streams[lane.name], positions.starts.get(lane.name)
        stream.reads = tuple(streams[name] for name in lane.reads)
        stream.follows = streams[start] if isinstance(start, str) else None
    return streams


class Lanes:
    """An open stream of several lanes; `stream["name"]` is a lane, itself a stream.

    A lane can be fed, said from, marked and rolled back on its own; what the others have read
    stays. `feed` advances several in one step.
    """

    def __init__(
        self,
        engine: Engine,
        streams: Mapping[str, Stream],
        lanes: Sequence[Lane],
        positions: PerLane,
    ) -> None:
        self.engine = engine
        self.lanes, self.positions = tuple(lanes), positions
        self._lanes = dict(streams)
        self._live = {name: lane.reads for name, lane in streams.items()}
        self._looks: dict[str, tuple[Stream, ...]] = {}

    def __getitem__(self, name: str) -> Stream:
        if name not in self._lanes:
            raise bad_value("stream", "lane", f"one of {', '.join(self._lanes)}", repr(name))
        return self._lanes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    def feed(self, tokens: Mapping[str, Tokens], *, logits: bool = False) -> dict[str, Report]:
        """Reads tokens of several lanes in one step, none of which sees what comes with it.

        All or nothing, as `Engine.step`, which does it.
        """
        reports = self.engine.step({self[name]: x for name, x in tokens.items()}, logits=logits)
        return {name: reports[self[name]] for name in tokens}

    def look(self, name: str) -> None:
        """The lane `name` sees those that it reads as they are now, and nothing that they read
        later, until it looks again. The pages are shared, not copied.
        """
        lane = self[name]
        lane._check_open("look")
        seen = tuple(other.fork() for other in self._live[name])
        self._forget(name)
        self._looks[name] = lane.reads = seen

    def watch(self, name: str) -> None:
        """The lane `name` sees those that it reads as they go on, as it did before it looked."""
        self[name].reads = self._live[name]
        self._forget(name)

    def _forget(self, name: str) -> None:
        for lane in self._looks.pop(name, ()):
            lane.close()

    def fork(self) -> Lanes:
        """A stream that goes on from here on its own, sharing all pages so far."""
        forked = {name: lane.fork() for name, lane in self._lanes.items()}
        joined = connected(forked, self.lanes, self.positions)
        made = Lanes(self.engine, joined, self.lanes, self.positions)
        for name, seen in self._looks.items():
            made._looks[name] = made[name].reads = tuple(lane.fork() for lane in seen)
        return made

    def mark(self) -> dict[str, Mark]:
        """Remembers this moment of every lane, for `rollback`."""
        return {name: lane.mark() for name, lane in self._lanes.items()}

    def rollback(self, marks: Mapping[str, Mark]) -> None:
        """Makes every marked lane what it was; the marks stay valid. All of them, or none."""
        for name, mark in marks.items():
            self[name]._check_mark(mark)
        for name, mark in marks.items():
            self[name].rollback(mark)

    def close(self) -> None:
        """Gives the pages of all lanes back. Closing twice is fine."""
        for name in list(self._looks):
            self._forget(name)
        for lane in self._lanes.values():
            lane.close()

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
