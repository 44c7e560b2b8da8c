# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...errors import bad_value
from ..seat import Job, Seat
from .policy import Policy, Share, fill

if TYPE_CHECKING:
    from ..desk import Desk


@dataclass
class ProgramPause(Policy):
    """Programs, that is streams of many turns, pause so that those that run keep their keys.

    ThunderAgent. A program reasons while a turn of it waits or runs, and acts between two turns. It
    is active or paused; one that is paused gets no steps, and its pages go first. Every `period`
    seconds, and when nothing active has work: those that were paused resume, the largest that still
    fits first, reasoning before new before acting ones; then, while the active ones need more than
    `capacity` tokens, the smallest that acts pauses, and when none acts, the smallest that reasons
    is marked to pause when its turn ends. reserve: tokens that a program may grow by before the
    next look, counted as its own.
    """

    capacity: int = 0
    period: float = 5.0
    reserve: int = 64
    active: set[str] = field(init=False, repr=False, default_factory=set)
    marked: set[str] = field(init=False, repr=False, default_factory=set)
    seen: set[str] = field(init=False, repr=False, default_factory=set)  # were active once
    pauses: list[tuple[float, str]] = field(init=False, repr=False, default_factory=list)
    resumes: list[tuple[float, str]] = field(init=False, repr=False, default_factory=list)
    _next: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        if self.capacity < 1 or not self.period > 0:
            got = f"{self.capacity} tokens, {self.period} s"
            raise bad_value("ProgramPause", "capacity", "tokens and a period above 0", got)

    def pick(self, desk: Desk) -> list[Share]:
        jobs = [job for job in desk.ready if job.seat.name in self.active]
        if desk.now >= self._next or not jobs:
            self._look(desk)
            self._next = desk.now + self.period
            jobs = [job for job in desk.ready if job.seat.name in self.active]
        return fill(sorted(jobs, key=lambda job: self.order(job, desk)), desk.budget)

    def wakes(self, desk: Desk) -> float:
        return self._next

    def victims(self, desk: Desk, job: Job) -> Iterator[Seat]:
        """Paused programs; then, if the reserve was too small, as any policy."""
        paused = [seat for name, seat in desk.seats.items() if name not in self.active]
        yield from paused
        yield from super().victims(desk, job)

    def finished(self, job: Job, desk: Desk) -> None:
        name = job.seat.name
        if name in self.marked and len(job.seat.queue) == 0:
            self._pause(name, desk)

    def closed(self, name: str, desk: Desk) -> None:
        for known in (self.active, self.marked, self.seen):
            known.discard(name)

    def _look(self, desk: Desk) -> None:
        used = sum(self._size(desk.seats[name]) for name in self.active)
        paused = [seat for name, seat in desk.seats.items() if name not in self.active]
        for seat in sorted(paused, key=lambda s: (self._class(s), -self._size(s), s.name)):
            size = self._size(seat)
            alone = not self.active  # one that is larger than all there is must still run
            if used + size <= self.capacity or (alone and seat.queue):
                self._resume(seat.name, desk)
                used += size
        for acting in (True, False):
            some = [desk.seats[n] for n in self.active if (not desk.seats[n].queue) == acting]
            for seat in sorted(some, key=lambda s: (self._size(s), s.name)):
                if used <= self.capacity or len(self.active) - len(self.marked) <= 1:
                    return
                if seat.name in self.marked:
                    used -= self._size(seat)
                    continue
                used -= self._size(seat)
                if acting:
                    self._pause(seat.name, desk)
                else:
                    self.marked.add(seat.name)

    def _class(self, seat: Seat) -> int:
        """Reasoning before new before acting."""
        if seat.name not in self.seen:
            return 1
        return 0 if seat.queue else 2

    def _size(self, seat: Seat) -> int:
        waiting = sum(len(job.event.tokens) for job in seat.queue if not job.started)
        return seat.text.length + waiting + self.reserve

    def _resume(self, name: str, desk: Desk) -> None:
        if name in self.seen:
            self.resumes.append((desk.now, name))
        self.active.add(name)
        self.seen.add(name)

    def _pause(self, name: str, desk: Desk) -> None:
        self.active.discard(name)
        self.marked.discard(name)
        self.pauses.append((desk.now, name))
