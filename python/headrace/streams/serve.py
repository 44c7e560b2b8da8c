# SPDX-License-Identifier: Apache-2.0
"""A run: events drive the streams of an engine, in time, by a policy.

Each turn reads the clock, takes in what has arrived, asks the policy what goes into the next step,
makes room for it, steps all of it at once, and writes down what it decided.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..errors import bad_type, bad_value
from ..memory import fresh_pages
from .clock import Clock, Real, Work
from .degrade import NAMES as DEGRADE
from .desk import Desk
from .engine import Engine, describe
from .events import Event
from .policies.arrival import Arrival
from .policies.policy import Policy, Share
from .run import Run
from .seat import Job, Seat
from .stream import Stream


def serve(
    engine: Engine,
    trace: Iterable[Event],
    policy: Policy | None = None,
    clock: Clock | None = None,
    *,
    degrade: str = "late",
    budget: int = 256,
) -> Run:
    """Runs a trace to its end. Arguments as of `Server`."""
    server = Server(engine, policy, clock, degrade=degrade, budget=budget)
    try:
        server.push(*trace)
        while server.turn():
            pass
        return server.run
    finally:
        server.close()


class Server(Desk):
    """A run in progress: `push` events at any time, and call `turn` until it returns False.

    policy: Arrival() if None; used as a fresh copy, `server.policy`. clock: Real() if None.
    degrade: what to do with what cannot be in time: "late", "drop", "skip", "shorten" or "refuse".
    budget: most tokens of a step.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy | None = None,
        clock: Clock | None = None,
        *,
        degrade: str = "late",
        budget: int = 256,
    ) -> None:
        policy = Arrival() if policy is None else policy
        if not isinstance(policy, Policy):
            raise bad_type("serve", "policy", "a Policy", type(policy).__name__)
        if degrade not in DEGRADE:
            raise bad_value("serve", "degrade", "one of " + ", ".join(DEGRADE), repr(degrade))
        if budget < 1:
            raise bad_value("serve", "budget", "1 token or more", budget)
        self.clock = Real() if clock is None else clock
        self._degrade = DEGRADE[degrade]
        policy = replace(policy)
        settings = {
            "engine": describe(engine),
            "degrade": degrade,
            "budget": budget,
            "policy": [type(policy).__name__, policy.plain()],
        }
        super().__init__(engine, policy, budget, settings)

    def turn(self) -> bool:
        """Does what there is to do now, one step at most; False when nothing is left or to come."""
        self.now = self._reading(self.clock.read())
        began, self._note = self.now, {}
        self._admit()
        self._settle()
        self._give_way()
        self._settle()
        shares = self._fit(self.policy.pick(self)) if self.ready else []
        more = True
        if shares:
            self._step(shares)
        else:
            more = self._idle()
        if self._note:
            self.run.log.append({"at": began, **self._note})
        return more

    # What takes one

    def _fit(self, shares: list[Share]) -> list[Share]:
        """Those of the shares that there are pages for, after others have given theirs up."""
        pool, taken = self.engine.pool, []
        kept: set[str] = set()
        need = reserved = 0
        full = False

        def room(pages: int) -> bool:
            nonlocal need, full
            need = pages + reserved
            while need > pool.free_pages:
                victim = next(victims, None)
                if victim is None:
                    full = True
                    return False
                if victim.name not in kept and victim is not seat:
                    self._park(victim)
            return True

        for job, tokens in shares:
            seat, victims = job.seat, self._victims(job)
            if seat.parked is not None and not room(seat.parked.pages):
                continue
            self._resume(job)
            tokens = min(tokens, job.left)
            while tokens and not room(self._need(seat, tokens)):
                tokens //= 2
            if tokens:
                kept.add(seat.name)
                reserved += self._need(seat, tokens)
                taken.append(Share(job, tokens))
        if full and not taken:
            got = f"{pool.free_pages} of {pool.pages}"
            raise bad_value("serve", "pool_pages", f"{need} free", got, "raise pool_pages")
        return taken

    def _victims(self, job: Job) -> Iterator[Seat]:
        """Those of the policy that have pages of their own; then all that hold any, for those that
        forks share are free only when the last of them lets go."""
        yield from (seat for seat in self.policy.victims(self, job) if seat.own_pages)
        yield from (s for s in self.policy.victims(self, job) if s.stream.pages or s.parked)

    def _need(self, seat: Seat, tokens: int) -> int:
        table, engine = seat.stream._lease.table, self.engine
        return fresh_pages(engine.pool, table, tokens)

    def _park(self, seat: Seat) -> None:
        swap = seat.own_pages > 0 and self.policy.swaps(seat, self)
        copied = seat.park(swap)
        self._note["copied"] = self._note.get("copied", 0) + copied
        self._note.setdefault("parked", []).append([seat.name, "swap" if swap else "recompute"])

    def _resume(self, job: Job) -> None:
        if job.seat.parked is not None:
            self._note["copied"] = self._note.get("copied", 0) + job.seat.resume()
            self._note.setdefault("resumed", []).append(job.seat.name)
        if not job.started:
            job.start()
        self._advance(job)  # one that was parked may have nothing to read before it speaks

    def _step(self, shares: list[Share]) -> None:
        began = self.now
        batch = {}
        for job, tokens in shares:
            at = job.seat.stream.tokens
            batch[job.seat.stream] = job.seat.text.tokens(at, at + tokens)
        work = Work(
            sum(map(len, batch.values())),
            len(batch),
            sum((_seen(s) + len(t)) * len(t) for s, t in batch.items()),
            self._note.get("copied", 0),
        )
        self.engine.step(batch)
        self.now = self._reading(self.clock.spend(work))
        seconds = self.now - began
        self.run.steps.append((work, seconds))
        rate = seconds / work.tokens
        self.rate = rate if self.rate is None else 0.8 * self.rate + 0.2 * rate
        digest = hashlib.blake2b(digest_size=8)
        for job, tokens in shares:
            last = job.seat.stream._last
            assert last is not None
            digest.update(last.cpu().numpy().tobytes())
            job.seat.used = self.now
            job.outcome.read += tokens
            if math.isnan(job.outcome.first) and not job.event.max_new:
                job.outcome.first = self.now
        self._note["step"] = [[job.outcome.index, tokens] for job, tokens in shares]
        self._note["logits"] = digest.hexdigest()
        self.policy.stepped(work, seconds, self)
        self._give_way()
        for job, _ in shares:
            if job in job.seat.queue:
                self._advance(job)

    def _give_way(self) -> None:
        for job, state in list(self._degrade(self)):
            self._end(job, state)
        self.arrivals = []

    def _idle(self) -> bool:
        wakes = self.policy.wakes(self) if self.ready else math.inf
        until = min(wakes, self._coming.next)
        if until < math.inf:
            self.clock.wait(until)
            return True
        if self.ready:
            raise bad_value("serve", "policy", "a choice among what is ready", "none")
        return False

    def _reading(self, now: float) -> float:
        self.run.readings.append(now)
        return now


def _seen(stream: Stream) -> int:
    """Tokens that its next query sees, those of the lanes that it reads among them."""
    return stream.alive + sum(lane.alive for lane in stream.reads)
