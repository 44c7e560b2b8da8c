# SPDX-License-Identifier: Apache-2.0
"""A bar, and how its figure is found in a recorded file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Any

Record = dict[str, Any]
Why = str | Callable[[Record], str]


@dataclass(frozen=True)
class Aim:
    """One bar. `least` or `most` bounds what `measure` finds in the record, None where that is not
    in it. `where` tells more of a figure, given whether it meets the bar. `why` explains a
    shortfall and is shown only beside one: of every machine, or of those whose folders it names; a
    function takes what it says from the record. `test` asserts the bar too, as
    `tests/....py::name`.
    """

    family: str
    what: str
    file: str
    measure: Callable[[Record], float | None]
    least: float | None = None
    most: float | None = None
    unit: str = "x"
    why: Why | Mapping[str, Why] = ""
    where: Callable[[Record, bool], str] | None = None
    test: str = ""

    def reason(self, folder: str, record: Record) -> str:
        """Why the machine of this folder falls short, as far as that is known."""
        why = self.why.get(folder, "") if isinstance(self.why, Mapping) else self.why
        return why if isinstance(why, str) else why(record)

    def met(self, value: float) -> bool:
        return value >= self.least if self.least is not None else value <= (self.most or 0)


def rows(record: Record, begins: str) -> list[Record]:
    """The rows of a bench whose shape begins so; never none."""
    found = [row for row in record["rows"] if row["shape"].startswith(begins)]
    if not found:
        raise ValueError(f"no shape begins with {begins!r} in {record['command']}")
    return found


def geometric(values: list[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def mean(begins: str, key: str = "speedup") -> Callable[[Record], float]:
    """The geometric mean of a figure over the rows that begin so."""
    return lambda record: geometric([row[key] for row in rows(record, begins)])


def worst(begins: str, key: str = "speedup") -> Callable[[Record], float]:
    return lambda record: min(row[key] for row in rows(record, begins))


def note(begins: str, name: str, pick: Callable = max) -> Callable[[Record], float]:
    """The largest (or otherwise picked) of a note over the rows that begin so and have it."""
    return lambda record: pick(
        row["notes"][name] for row in rows(record, begins) if name in row["notes"]
    )


def inside(*path: str) -> Callable[[Record], float]:
    """A figure by its keys."""

    def measure(record: Record) -> float:
        value: Any = record
        for key in path:
            value = value[key]
        return float(value)

    return measure


def over(upper: tuple[str, ...], lower: tuple[str, ...]) -> Callable[[Record], float]:
    """One figure over another, each by its keys."""
    return lambda record: inside(*upper)(record) / inside(*lower)(record)


def between(record: Record, key: str, *begins: str, holds: Callable = lambda row: True) -> str:
    """From the least to the most of a share, in per cent, over the rows that begin so."""
    each = [row[key] for name in begins for row in rows(record, name) if holds(row)]
    low, high = (f"{100 * end:.0f}" for end in (min(each), max(each)))
    return f"{low}%" if low == high else f"{low} to {high}%"
