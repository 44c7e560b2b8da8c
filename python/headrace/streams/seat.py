# SPDX-License-Identifier: Apache-2.0
"""What a run knows of a stream and of what it is asked to do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch

from ..errors import bad_value
from ..memory import Lease, Parked, Table
from .events import READING, Event
from .history import History
from .lane import Lanes
from .saying import generator, pick
from .stream import Mark, Stream
from .timing import Outcome
from .update import rewind


class Job:
    """An event that has arrived and is not over."""

    def __init__(self, event: Event, outcome: Outcome, seat: Seat) -> None:
        self.event, self.outcome, self.seat = event, outcome, seat
        self.limit = event.max_new
        self.started = False
        self._generator = generator(event.seed)
        self._common: int | None = None

    @property
    def key(self) -> tuple[float, int]:
        """Its place in the order of arrival."""
        return self.outcome.arrived, self.outcome.index

    @property
    def due(self) -> float:
        """When it must be done, or with a pace, when its next token must be said."""
        return self.outcome.due + (self.event.pace or 0.0) * len(self.outcome.said)

    @property
    def until(self) -> float:
        """When all of it must be done."""
        return self.outcome.due + (self.event.pace or 0.0) * max(0, self.event.max_new - 1)

    @property
    def left(self) -> int:
        """Tokens to read before it says its next, or is done."""
        seat, event = self.seat, self.event
        if self.started:
            return seat.left
        if event.kind != "update":
            left = seat.left + len(event.tokens)
            # What predicts its first token is parked, so it cannot just begin.
            return left or int(event.kind == "say" and seat.parked is not None)
        if self._common is None:  # the text of a stream stays while an event is the next
            self._common = seat.text.common(event.tokens)
        kept = self._common - (0 < self._common < seat.text.length)
        return len(event.tokens) - min(seat.held, kept)

    @property
    def ended(self) -> bool:
        """Whether it has said all that it will."""
        said = self.outcome.said
        return len(said) >= self.limit or (bool(said) and said[-1] == self.event.stop)

    def start(self) -> None:
        """Its tokens become part of the text of its stream."""
        self.started = True
        seat, tokens = self.seat, self.event.tokens
        if self.event.kind == "update":
            self.outcome.kept = seat.replace(tokens)
        else:
            seat.text = seat.text.extend(tokens)

    def speak(self, now: float) -> None:
        """Says the token that its stream predicts, which is then to be read."""
        last = self.seat.stream._last
        if last is None:
            expected = "tokens before a stream is to say something"
            raise bad_value("serve", "trace", expected, f"none in {self.seat.name!r}")
        token = pick(last, self.event.temperature, self._generator)
        out = self.outcome
        out.said.append(token)
        out.emitted.append(now)
        if not math.isnan(self.seat.fresh):
            out.staleness.append(now - self.seat.fresh)
        if len(out.said) == 1:
            out.first = now
        out.done = now
        self.seat.text = self.seat.text.extend([token])


class Seat:
    """A stream of a run, by its name; what it has read, and what it should have."""

    def __init__(self, name: str, stream: Stream, text: History | None = None) -> None:
        self.name, self.stream = name, stream
        self.text = History() if text is None else text
        """What it has read when its current event is read."""
        self.queue: deque[Job] = deque()
        self.parked: Parked | None = None
        self.born = True
        self.used = 0.0  # when a step last read of it
        self.fresh = math.nan  # when the newest input that it has read whole arrived
        self.lanes: tuple[Seat, ...] = ()  # of the stream that it is a lane of, itself among them
        self._mark: tuple[Mark, History] | None = None
        self._last: torch.Tensor | None = None

    @property
    def job(self) -> Job | None:
        """What it is to do next, when that takes steps."""
        job = self.queue[0] if self.queue and self.born else None
        return job if job is not None and job.event.kind in READING else None

    @property
    def held(self) -> int:
        """Tokens whose keys it has, in the pool or out of it."""
        return self.parked.table.tokens if self.parked else self.stream.tokens

    @property
    def left(self) -> int:
        """Tokens of its text that it has not read, or has to read again."""
        return self.text.length - self.held

    @property
    def own_pages(self) -> int:
        """Pages that are free once it is parked; none of a lane, for others read it meanwhile."""
        if self.lanes:
            return 0
        pool = self.stream.engine.pool
        return sum(pool.holders(page) == 1 for page in self.stream.pages)

    def park(self, swap: bool) -> int:
        """Gives its pages up: copied out, or to be read again. Returns how many were copied.

        One that is parked gives up what it still shares with others, and its copies. Where regions
        choose who stays, reading again may choose others, and where places came with tokens, these
        are not in the text: they are copied out, and stay so.
        """
        if self.parked is not None and _only_copied(self.parked.table):
            return 0
        self._unpark()
        if not swap and not _only_copied(self.stream.table):
            rewind(self.stream, 0)
            return 0
        stream = self.stream
        self._last, stream._last = stream._last, None
        table = stream._lease.table
        self.parked = Parked(stream.engine.pool, stream._lease)
        empty = Table(table.start, table.start, table.plan)
        stream._lease = Lease(stream.engine.pool, empty)
        return self.parked.pages

    def resume(self) -> int:
        """Copies its pages back in, if they were copied out. Returns how many."""
        if self.parked is None:
            return 0
        pages, lease = self.parked.pages, self.parked.restore()
        self.stream._lease.release()
        self.stream._lease, self.stream._last = lease, self._last
        self.parked = self._last = None
        return pages

    def replace(self, tokens: Sequence[int]) -> int:
        """Its text becomes these; the common prefix, whose length is returned, is not read again.

        One token of it is, for what it predicts, and all that the window can no longer show.
        """
        kept = self.text.common(tokens)
        if kept < self.text.length:
            rewind(self.stream, min(self.stream.tokens, max(0, kept - 1)))
        self.text = self.text.cut(kept).extend(tokens[kept:])
        return kept

    def fork(self, name: str) -> Seat:
        """Another that goes on from here; it reads again what this one has parked, unless that
        might give another table: then this one takes its pages back first.
        """
        if self.parked is not None and _only_copied(self.parked.table):
            self.resume()
        child = Seat(name, self.stream.fork(), self.text)
        child.fresh = self.fresh
        return child

    def mark(self) -> None:
        """Remembers this moment, and no other."""
        self._forget()
        self._mark = self.stream.mark(), self.text

    def rollback(self) -> None:
        """Back to the moment remembered."""
        if self._mark is None:
            raise bad_value("serve", "trace", "a mark before a rollback", f"none in {self.name!r}")
        self._unpark()
        mark, self.text = self._mark
        self.stream.rollback(mark)

    def close(self) -> None:
        self._unpark()
        self._forget()
        self.stream.close()

    def _unpark(self) -> None:
        if self.parked is not None:
            self.parked.release()
            self.parked = self._last = None

    def _forget(self) -> None:
        if self._mark is not None:
            self._mark[0].release()
            self._mark = None


def _only_copied(table: Table) -> bool:
    """Whether reading the text again might give another table."""
    return table.kept is not None or (table.placed is not None and table.placed.given)


def side_by_side(name: str, lanes: Lanes) -> tuple[Seat, ...]:
    """A seat for each lane of a stream, which know one another."""
    seats = tuple(Seat(f"{name}/{lane}", lanes[lane]) for lane in lanes)
    for seat in seats:
        seat.lanes = seats
    return seats
