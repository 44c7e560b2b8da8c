# SPDX-License-Identifier: Apache-2.0
"""The desk of a run: what has arrived, what waits in which order, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import bad_value
from .coming import Coming
from .engine import Engine
from .events import READING, Event, check_lanes, check_trace
from .policies.policy import Policy
from .run import Run
from .seat import Job, Seat, side_by_side
from .timing import Outcome


class Desk:
    """What policies read of a run.

    now: seconds since it began. ready: the next job of each stream that has one, in order of
    arrival. arrivals: those of this turn. seats: by name. budget: most tokens of a step. rate:
    seconds per token, of late; None before the first step.
    """

    def __init__(
        self, engine: Engine, policy: Policy, budget: int, settings: dict[str, Any]
    ) -> None:
        self.engine, self.policy, self.budget = engine, policy, budget
        self.now = 0.0
        self.rate: float | None = None
        self.seats: dict[str, Seat] = {}
        self.ready: list[Job] = []
        self.arrivals: list[Job] = []
        self._closed: set[str] = set()
        self._lanes: dict[str, tuple[Seat, ...]] = {}  # of each stream that has several
        self._coming = Coming()
        self._note: dict[str, Any] = {}
        self._stems = 0
        self.run = Run([], [], [], [], [], settings, policy)

    def push(self, *events: Event) -> None:
        """More events; times count from the start of the run."""
        run = self.run
        check_trace(events, len(run.events))
        for event in events:
            i = len(run.events)
            run.events.append(event)
            nan, pace = math.nan, event.pace
            run.outcomes.append(Outcome(i, event.stream, event.kind, nan, math.inf, pace))
            since = 0.0 if event.after is None else self._over(event.after)
            if event.after is not None and math.isnan(since):
                self._coming.after(event.after, i)
            else:
                self._coming.at(since + event.time, i)

    def close(self) -> None:
        """Closes the streams of the run."""
        for seat in self.seats.values():
            seat.close()
        self.seats.clear()
        self._lanes.clear()

    def forget(self) -> None:
        """Lets go of the records of what is over, and of the names of closed streams, so that a
        server may go on for ever: streams and time stay, events count from 0 again.

        ValueError while something waits or is to come.
        """
        waits = sum(len(seat.queue) for seat in self.seats.values()) + len(self._coming)
        if waits:
            raise bad_value("serve", "forget", "a run with nothing left to do", f"{waits} events")
        run = self.run
        self.run = Run([], [], [], [], [], run.settings, run.policy)
        self._closed.clear()

    # What policies may start

    def stem(self, tokens: Sequence[int], onto: Seat | None = None) -> Job:
        """A stream of the policy's own that reads these tokens, from where another has got to.

        Returns the job of reading them, of a number below 0; `discard` it by its name in the end.
        """
        self._stems += 1
        name = f"stem {self._stems}"
        seat = Seat(name, self.engine.open()) if onto is None else onto.fork(name)
        self.seats[name] = seat
        event = Event(self.now, name, "feed", tuple(tokens[seat.text.length :]))
        job = Job(event, Outcome(-self._stems, name, "feed", self.now, math.inf), seat)
        seat.queue.append(job)
        return job

    def graft(self, job: Job, onto: Seat) -> None:
        """The stream of a job, still empty, goes on from what another has read of its tokens."""
        seat = job.seat
        seat.stream.close()
        seat.stream, seat.text = onto.stream.fork(), onto.text
        seat.text = seat.text.extend(job.event.tokens[seat.text.length :])
        job.started = True
        self._advance(job)

    def discard(self, name: str) -> None:
        """Closes a stream of the policy's own."""
        self._shut(self.seats[name])

    # What arrives

    def _admit(self) -> None:
        self.arrivals = []
        for at, i in self._coming.due(self.now):
            event, out = self.run.events[i], self.run.outcomes[i]
            out.arrived = at
            if event.deadline is not None:
                since = at if event.since is None else self.run.outcomes[event.since].arrived
                out.due = since + event.deadline
            self._enqueue(event, out)

    def _enqueue(self, event: Event, out: Outcome) -> None:
        kind, name = event.kind, event.stream
        if kind in ("open", "fork"):
            if name in self.seats or name in self._lanes:
                raise bad_value("serve", "trace", "a name that is free", repr(name))
            if kind == "open":
                self._open(name)
                self._over_now(out)
                return
            name = event.parent
        if name in self._lanes or (name in self.seats and self.seats[name].lanes):
            self._of_lanes(name, event, out)
            return
        if name not in self.seats:
            if name not in self._closed:
                raise bad_value("serve", "trace", "an open stream", repr(name))
            self._closed.add(event.stream)
            self._over_now(out, "killed")
            return
        seat = self.seats[name]
        if kind == "fork":
            self.seats[event.stream] = child = Seat(event.stream, self.engine.open())
            child.born = False
        if kind == "kill":
            self._shut(seat)
            self._over_now(out)
        elif kind == "interrupt":
            self._interrupt(seat)
            self._over_now(out)
        else:
            self._queue(Job(event, out, seat))

    def _open(self, name: str) -> None:
        if not self.engine.lanes:
            self.seats[name] = Seat(name, self.engine.open())
            return
        self._lanes[name] = seats = side_by_side(name, self.engine.open_lanes())
        self.seats.update({seat.name: seat for seat in seats})

    def _of_lanes(self, name: str, event: Event, out: Outcome) -> None:
        """An event of a stream of several lanes, or of one of them."""
        kind, whole = event.kind, name in self._lanes
        seats = self._lanes[name] if whole else (self.seats[name],)
        check_lanes(event, name, whole)
        if kind == "kill":
            self._shut_lanes(name)
            self._over_now(out)
        elif kind == "interrupt":
            for seat in seats:
                self._interrupt(seat)
            self._over_now(out)
        else:
            for seat in seats:
                self._queue(Job(event, out, seat))

    def _queue(self, job: Job) -> None:
        job.seat.queue.append(job)
        if job.event.kind in READING:
            self.arrivals.append(job)
            self.policy.arrived(job, self)

    def _interrupt(self, seat: Seat) -> None:
        for job in list(seat.queue):
            if job.event.kind == "say":
                self._end(job, "shortened")

    # What takes no step

    def _settle(self) -> None:
        """Does what takes no step, and finds what is ready for one."""
        again = True
        while again:
            again = False
            for seat in list(self.seats.values()):
                while seat.queue and seat.born and self._instant(seat.queue[0]):
                    again = True
        jobs = [seat.job for seat in self.seats.values()]
        self.ready = sorted((job for job in jobs if job is not None), key=lambda job: job.key)

    def _instant(self, job: Job) -> bool:
        seat, kind = job.seat, job.event.kind
        if kind in READING:
            if job.left:
                return False
            if not job.started:
                job.start()
            return self._advance(job)
        if seat.lanes:
            return self._all_lanes(job)
        if kind == "fork":
            child = self.seats[job.event.stream]
            child.stream.close()
            grown = seat.fork(child.name)
            grown.queue = child.queue
            for waiting in child.queue:
                waiting.seat = grown
            self.seats[child.name] = grown
        elif kind == "mark":
            seat.mark()
        elif kind == "rollback":
            seat.rollback()
        self._end(job, "done")
        if kind == "close":
            self._shut(seat)
        return True

    def _all_lanes(self, job: Job) -> bool:
        """Closes, marks or rolls back a stream of lanes, once all of them have come to it."""
        lanes, event = job.seat.lanes, job.event
        heads = [seat.queue[0] for seat in lanes if seat.queue]
        if len(heads) < len(lanes) or any(head.event is not event for head in heads):
            return False
        for head in heads:
            if event.kind == "mark":
                head.seat.mark()
            elif event.kind == "rollback":
                head.seat.rollback()
            self._end(head, "done")
        if event.kind == "close":
            self._shut_lanes(event.stream)
        return True

    def _shut_lanes(self, name: str) -> None:
        for seat in self._lanes.pop(name):
            self._shut(seat)
        self._closed.add(name)

    def _shut(self, seat: Seat) -> None:
        for job in list(seat.queue):
            self._end(job, "killed")
            if job.event.kind == "fork":
                self._shut(self.seats[job.event.stream])
        if not seat.born:  # nor will it be
            jobs = [job for other in self.seats.values() for job in other.queue]
            for job in jobs:
                if job.event.kind == "fork" and job.event.stream == seat.name:
                    self._end(job, "killed")
        seat.close()
        del self.seats[seat.name]
        self.policy.closed(seat.name, self)
        self._closed.add(seat.name)

    def _advance(self, job: Job) -> bool:
        """A job whose tokens are all read says its next, or is over; True if it is."""
        if job.seat.left:
            return False
        if not job.ended:
            job.speak(self.now)
            return False
        self._end(job, "done")
        return True

    def _end(self, job: Job, state: str) -> None:
        out = job.outcome
        if state == "shortened" and not job.started:
            state = "dropped"
        if state != "done":
            self._note.setdefault("ended", []).append([out.index, state])
            out.state = state
        if state == "shortened":
            job.limit = len(out.said)
            if job.seat.left:
                return  # what it has said is still to be read
        job.seat.queue.remove(job)
        if job.event.kind in ("feed", "update") and state == "done":
            job.seat.fresh = out.arrived
        self._over_now(out, out.state)
        if job.event.kind in READING:
            self.policy.finished(job, self)

    def _over_now(self, out: Outcome, state: str = "done") -> None:
        out.state = state
        if math.isnan(out.done):
            out.done = self.now
        if math.isnan(out.first) and state == "done":
            out.first = out.done
        self._coming.over(out.index, out.done, self.run.events)

    def _over(self, index: int) -> float:
        """When an event was over; nan while it is not."""
        out = self.run.outcomes[index]
        seat = self.seats.get(out.stream)
        waits = seat is not None and any(job.outcome is out for job in seat.queue)
        return math.nan if waits else out.done
