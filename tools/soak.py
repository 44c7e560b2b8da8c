# SPDX-License-Identifier: Apache-2.0
"""A day of random use in virtual time: streams open, read, speak, branch, go back and are killed.

    python tools/soak.py [--operations 1000000] [--streams 50] [--hours 24] [--out soak.json]

After every hundred operations the page pool is held against what every stream, mark and parked copy
still holds; every thousand, streams are held against the oracle of their whole text; resident
memory is read as it goes. Ends with status 1, and the first problems, when anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch

from headrace import InCache, Sink, Window, models, oracle, wrap
from headrace.cli import report
from headrace.cli.proofs import random_model
from headrace.streams import Event, Linear, Server, Virtual
from headrace.streams.engine import Engine, Model
from headrace.streams.policies.arrival import Arrival

MEMORY, POSITIONS = Sink(4) + Window(60), InCache()
BOUND = 1e-4
"""Largest difference of two logits in fp32 that counts as rounding."""
LONGEST = 320
"""Tokens of a stream, so that an oracle of all of it costs little."""
CHECK, SAMPLE, BATCH = 100, 1000, 200
"""Operations between two looks at the pool, two at the oracle, and that are asked at a time."""
WEIGHTS = {
    "feed": 34, "say": 10, "fork": 8, "mark": 9, "rollback": 9, "update": 10, "close": 7,
    "kill": 3, "interrupt": 4, "open": 6,
}  # fmt: skip


class Swapping(Arrival):
    """Copies the pages of every other stream that has to give them up, and drops the others'."""

    def swaps(self, seat: Any, desk: Any) -> bool:
        return bool(int(seat.name) % 2)


class Soak:
    """A server of random events. operations: by kind, what was done so far."""

    def __init__(
        self,
        model: Model,
        *,
        streams: int = 50,
        seconds_apart: float = 0.0864,
        pool_pages: int | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.streams, self.apart = model, streams, seconds_apart
        # Too few for all of them, so that some are parked now and then.
        pages = 4 * streams if pool_pages is None else pool_pages
        self.engine: Engine = wrap(
            model, memory=MEMORY, positions=POSITIONS, page_size=16, pool_pages=pages
        )
        clock = Virtual(Linear(step=0.5, token=1e-3))
        self.server = Server(self.engine, Swapping(), clock, budget=256)
        self.operations: Counter[str] = Counter()
        self.problems: list[str] = []
        self.checks = self.samples = self.parked = self.most_pages = 0
        self.drift = 0.0
        self._random, self._named, self._when = random.Random(seed), 0, 0.0
        self._lengths: dict[str, int] = {}
        self._marked: set[str] = set()

    def play(self, operations: int) -> None:
        """So many operations more."""
        left = operations
        while left:
            count = min(BATCH, left)
            self._when, seats = max(self._when, self.server.now), self.server.seats
            # A fork of a stream that was killed before its turn was never born.
            self._lengths = {n: seats[n].text.length for n in self._lengths if n in seats}
            self._marked &= {n for n in self._lengths if seats[n]._mark is not None}
            self.server.push(*(self._event() for _ in range(count)))
            turns = 0
            while self.server.turn():
                turns += 1
                if turns % (CHECK // 4) == 0:
                    self.check()
            self.check()
            done = sum(self.operations.values())
            if done // SAMPLE > (done - count) // SAMPLE:
                self.sample()
            parked = [entry for entry in self.server.run.log if "parked" in entry]
            self.parked += sum(len(entry["parked"]) for entry in parked)
            self.server.forget()
            left -= count

    # What is asked

    def _event(self) -> Event:
        pick = self._random
        self._when += pick.expovariate(1 / self.apart)
        open_now = list(self._lengths)
        kind = pick.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if not open_now or (len(open_now) < self.streams and pick.random() < 0.3):
            kind = "open"
        if kind in ("open", "fork") and len(open_now) >= self.streams:
            kind = "feed"
        name = pick.choice(open_now) if open_now else ""
        if kind == "rollback" and self._marked:
            name = pick.choice(sorted(self._marked))
        elif kind in ("mark", "rollback"):  # marks cannot be parked: not too many
            kind = "mark" if len(self._marked) < self.streams // 4 else "feed"
        self.operations[kind] += 1
        return getattr(self, f"_{kind}", self._plain)(name, kind)

    def _plain(self, name: str, kind: str) -> Event:
        return Event(self._when, name, kind)

    def _open(self, name: str, kind: str) -> Event:
        self._named += 1
        self._lengths[str(self._named)] = 0
        return Event(self._when, str(self._named), "open")

    def _fork(self, name: str, kind: str) -> Event:
        self._open(name, kind)
        self._lengths[str(self._named)] = self._lengths[name]
        return Event(self._when, str(self._named), "fork", parent=name)

    def _feed(self, name: str, kind: str) -> Event:
        count = self._random.randint(1, 24)
        if self._lengths[name] + count > LONGEST:
            return self._update(name, "update")
        self._lengths[name] += count
        return Event(self._when, name, "feed", self._bytes(count))

    def _say(self, name: str, kind: str) -> Event:
        count, most = self._random.randint(1, 6), self._random.randint(1, 6)
        if self._lengths[name] + count + most > LONGEST:
            return self._update(name, "update")
        self._lengths[name] += count + most
        heat = self._random.choice((0.0, 1.0))
        tokens, seed = self._bytes(count), self._random.randrange(2**31)
        return Event(self._when, name, "say", tokens, max_new=most, temperature=heat, seed=seed)

    def _update(self, name: str, kind: str) -> Event:
        seat = self.server.seats.get(name)
        text = seat.text.tokens() if seat is not None else []
        kept = self._random.randint(0, min(len(text), LONGEST // 2))
        changed = (*text[:kept], *self._bytes(self._random.randint(1, 24)))
        self._lengths[name] = max(self._lengths[name] // 2, len(changed))
        return Event(self._when, name, "update", changed)

    def _mark(self, name: str, kind: str) -> Event:
        self._marked.add(name)
        return Event(self._when, name, "mark")

    def _close(self, name: str, kind: str) -> Event:
        del self._lengths[name]
        self._marked.discard(name)
        return Event(self._when, name, kind)

    _kill = _close

    def _bytes(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.randbytes(count))

    # What must hold

    def check(self) -> None:
        """Every page in use is held by exactly those that need it, and by nobody else."""
        pool, held = self.engine.pool, Counter[int]()
        self.checks += 1
        for seat in self.server.seats.values():
            leases = [seat.stream._lease]
            if seat._mark is not None:
                leases.append(seat._mark[0]._lease)
            if seat.parked is not None:
                held.update(seat.parked._shared)
            for lease in leases:
                table = lease.table
                held.update(table.page_ids)
                if len(_alive(table, pool.page_size)) != table.alive:
                    self._tell(f"{seat.name}: pages of other tokens than the {table.alive} alive")
                if _spare(table, pool.page_size):
                    self._tell(f"{seat.name}: pages without a token alive, more than planned")
        if pool.live_pages != len(held):
            self._tell(f"{pool.live_pages} pages in use, {len(held)} held")
        if any(pool.holders(page) != held[page] for page in range(pool.pages)):
            self._tell("a page with another number of holders than hold it")
        self.most_pages = max(self.most_pages, pool.live_pages)

    def sample(self, most: int = 3) -> None:
        """Some streams, against a dense forward of all of their text."""
        seats = [
            seat
            for seat in self.server.seats.values()
            if seat.stream._last is not None and not seat.left and not seat.queue
        ]
        for seat in self._random.sample(seats, min(most, len(seats))):
            text = torch.tensor(seat.text.tokens())
            want = oracle(self.model, text, MEMORY, POSITIONS)[-1]
            off = float((seat.stream._last - want).abs().max())
            self.samples += 1
            self.drift = max(self.drift, off)
            if not off <= BOUND:
                self._tell(f"{seat.name}: {off:.1e} from its oracle after {len(text)} tokens")

    def _tell(self, what: str) -> None:
        self.problems.append(f"at {self.server.now:.1f} s: {what}")

    def close(self) -> None:
        """Ends it; nothing may be left in the pool."""
        self.server.close()
        if self.engine.pool.live_pages:
            self._tell(f"{self.engine.pool.live_pages} pages in use after all are closed")
        self.engine.close()


def _alive(table: Any, page_size: int) -> set[int]:
    """Positions that the next query sees and a page of the table holds."""
    border = table.start + table.plan.pinned
    oldest = max(border, table.end - table.plan.reach + 1)
    found: set[int] = set()
    for run, lo, hi in (
        (table.pinned, table.start, min(border, table.end)),
        (table.window, oldest, table.end),
    ):
        stops = [*(page.start for page in run[1:]), table.end]
        for page, stop in zip(run, stops, strict=bool(run)):
            found.update(range(max(lo, page.start), min(hi, stop, page.start + page_size)))
    return found


def _spare(table: Any, page_size: int) -> bool:
    """Whether it holds more pages than planned and one of them has no token alive; branches begin
    pages of their own, so that short ones may be more."""
    oldest = table.end - table.plan.reach + 1
    window = table.window
    return len(window) > table.plan.window_pages(page_size) and window[1].start <= oldest


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def soak(
    operations: int, streams: int, hours: float, model: Model, seed: int, minutes: float
) -> dict[str, Any]:
    """Plays it; what came of it, for a record. minutes: it stops after so many."""
    made = Soak(model, streams=streams, seconds_apart=3600 * hours / operations, seed=seed)
    memory = [resident()]
    began, part = time.perf_counter(), max(BATCH, operations // 200)
    while (done := sum(made.operations.values())) < operations and not made.problems:
        if time.perf_counter() - began > 60 * minutes:
            break
        made.play(min(part, operations - done))
        memory.append(resident())
    seconds = time.perf_counter() - began
    now = made.server.now
    made.close()
    settled = memory[len(memory) // 4 :]
    half = max(1, len(settled) // 2)
    return {
        "operations": sum(made.operations.values()),
        "asked": operations,
        "by_kind": dict(sorted(made.operations.items())),
        "streams": streams,
        "virtual_hours": now / 3600,
        "seconds": seconds,
        "checks": made.checks,
        "samples": made.samples,
        "worst_drift": made.drift,
        "bound": BOUND,
        "most_pages": made.most_pages,
        "pages": made.engine.pool.pages,
        "parked": made.parked,
        "resident_mib": [round(m, 2) for m in memory],
        "resident_growth_mib": median(settled[-half:]) - median(settled[:half]),  # past a quarter
        "problems": made.problems[:20],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--hours", type=float, default=24.0, help="of virtual time")
    parser.add_argument("--minutes", type=float, default=1e9, help="of real time, at most")
    parser.add_argument("--model", choices=models.names(), help="else a smaller, random one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    told: dict[str, Any] = report.taken()
    model: Model = random_model() if args.model is None else models.load(args.model)
    found = soak(args.operations, args.streams, args.hours, model, args.seed, args.minutes)
    told.update(found)
    if args.out is not None:
        report.write(told, args.out)
    print(
        f"{found['operations']:,} operations, {found['virtual_hours']:.1f} virtual hours, "
        f"{found['seconds']:.0f} s: {found['checks']:,} checks of the pool, {found['samples']:,} "
        f"of the oracle, worst {found['worst_drift']:.1e}; {found['parked']:,} parked; resident "
        f"memory {found['resident_growth_mib']:+.2f} MiB"
    )
    for problem in found["problems"]:
        print(problem)
    return bool(found["problems"])


if __name__ == "__main__":
    sys.exit(main())
