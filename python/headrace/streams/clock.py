# SPDX-License-Identifier: Apache-2.0
"""Clocks: what time it is for a run, in seconds from its start.

A run reads its clock when a turn begins and when its step is done, and decides by nothing else.
Whoever has the readings can therefore run it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from ..errors import bad_value


@dataclass(frozen=True)
class Work:
    """What a step had to do: tokens read, streams they were of, keys that these saw, pages copied
    in or out before it."""

    tokens: int = 0
    streams: int = 0
    seen: int = 0
    copied: int = 0


class Clock:
    """Time goes on as `wait` and `spend` say."""

    def read(self) -> float:
        """Seconds since the run began."""
        raise NotImplementedError

    def wait(self, until: float) -> None:
        """Returns when it is `until`, or earlier; the run looks again."""
        raise NotImplementedError

    def spend(self, work: Work) -> float:
        """The time now that a step is done."""
        raise NotImplementedError


class Real(Clock):
    """The wall clock; a run begins at its first reading. nap: longest sleep, in seconds."""

    def __init__(self, nap: float = 0.05) -> None:
        self._began: float | None = None
        self._nap = nap

    def read(self) -> float:
        now = time.perf_counter()
        if self._began is None:
            self._began = now
        return now - self._began

    def wait(self, until: float) -> None:
        time.sleep(min(max(until - self.read(), 0.0), self._nap))

    def spend(self, work: Work) -> float:
        return self.read()


class Virtual(Clock):
    """Time jumps to what comes next, and a step takes what a cost model says: seconds of a Work.

    now: what it begins at, for a run that goes on."""

    def __init__(self, cost: Callable[[Work], float], now: float = 0.0) -> None:
        self._cost, self._now = cost, now

    def read(self) -> float:
        return self._now

    def wait(self, until: float) -> None:
        self._now = max(self._now, until)

    def spend(self, work: Work) -> float:
        seconds = float(self._cost(work))
        if not seconds > 0:
            raise bad_value("Virtual", "cost", "seconds, more than 0", seconds)
        self._now += seconds
        return self._now


class Recorded(Clock):
    """The readings of another run, one after the other."""

    def __init__(self, readings: Iterable[float]) -> None:
        self._left = iter(readings)

    def read(self) -> float:
        now = next(self._left, None)
        if now is None:
            raise bad_value("Recorded", "readings", "a reading", "no more", "the runs differ")
        return now

    def wait(self, until: float) -> None:
        pass

    def spend(self, work: Work) -> float:
        return self.read()


@dataclass(frozen=True)
class Linear:
    """Seconds of a step: so much for each of what it had to do, and `step` besides."""

    step: float = 1e-3
    token: float = 1e-4
    stream: float = 0.0
    seen: float = 0.0
    copied: float = 0.0

    def __call__(self, work: Work) -> float:
        return (
            self.step
            + self.token * work.tokens
            + self.stream * work.streams
            + self.seen * work.seen
            + self.copied * work.copied
        )

    @classmethod
    def fit(cls, steps: Sequence[tuple[Work, float]]) -> Linear:
        """The least squares through measured steps; no term is negative.

        Terms that would be are left out one by one, the most negative first.
        """
        if not steps:
            raise bad_value("Linear.fit", "steps", "at least one", "none")
        rows = np.array([(1, *astuple(work)) for work, _ in steps], dtype=float)
        seconds = np.array([s for _, s in steps])
        used = [i for i in range(rows.shape[1]) if rows[:, i].any()]
        found = np.zeros(len(used))
        while used:
            scale = np.abs(rows[:, used]).max(0)
            found = np.linalg.lstsq(rows[:, used] / scale, seconds, rcond=None)[0] / scale
            if (found >= 0).all():
                break
            used.pop(int((found * scale).argmin()))
        terms = dict(zip(used, map(float, found), strict=False))
        return cls(*(terms.get(i, 0.0) for i in range(len(fields(cls)))))


@dataclass(frozen=True)
class Polynomial:
    """Seconds as a polynomial of a count, lowest power first."""

    terms: tuple[float, ...]

    def __call__(self, n: float) -> float:
        return float(sum(c * n**i for i, c in enumerate(self.terms)))

    @classmethod
    def fit(cls, counts: Sequence[float], seconds: Sequence[float], degree: int = 2) -> Polynomial:
        """The least squares of that degree through measurements."""
        if len(set(counts)) <= degree:
            expected = f"more than {degree} different counts"
            raise bad_value("Polynomial.fit", "counts", expected, len(set(counts)))
        found = np.polynomial.Polynomial.fit(counts, seconds, degree).convert().coef
        return cls((*map(float, found), *(0.0,) * (degree + 1 - len(found))))
