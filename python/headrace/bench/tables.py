# SPDX-License-Identifier: Apache-2.0
"""A table of figures as data: as plain text, or drawn by whoever has a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

BAD, GOOD, QUIET, STRONG = "bad", "good", "quiet", "strong"
SLOWER = "\u25bc"
"""Stands before a ratio to a peer that is quicker than ours."""
RIGHT, WRONG = "\u2713", "\u2717"
"""Stand before the error of a result."""


@dataclass(frozen=True)
class Column:
    """Its head, with the unit; numbers stand to the right."""

    name: str
    right: bool = True


@dataclass(frozen=True)
class Line:
    """One cell for each column. looks: how some are to look, by their place."""

    cells: tuple[str, ...]
    looks: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Lines under one head. by: so many first columns say what the lines belong to, and one that
    is empty there goes on with the line before. notes: the last column is long, and may as well
    stand below the first of those that are left. below: lines after the table.
    """

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    by: int = 0
    notes: bool = False
    title: str = ""
    below: tuple[str, ...] = ()

    def __str__(self) -> str:
        """All of it, a line for a line however long."""
        rows = [tuple(c.name for c in self.columns), *(line.cells for line in self.lines)]
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        texts = [
            "  ".join(
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(row, widths, self.columns, strict=True)
            ).rstrip()
            for row in rows
        ]
        rule = "-" * len(texts[0])
        title = [self.title] if self.title else []
        return "\n".join([*title, texts[0], rule, *texts[1:], *self.below])

    def groups(self) -> Iterator[tuple[tuple[str, ...], list[Line]]]:
        """What lines belong to, and these lines without it."""
        named, last = [], ("",) * self.by
        for line in self.lines:
            first = line.cells[: self.by]
            last = first if any(first) else last
            looks = {at - self.by: look for at, look in line.looks.items()}
            named.append((last, Line(line.cells[self.by :], looks)))
        for name, group in groupby(named, key=lambda each: each[0]):
            yield name, [line for _, line in group]


def with_notes(
    columns: tuple[Column, ...], lines: Iterable[Line], by: int, below: Iterable[str]
) -> Table:
    """A table whose last column is notes; without that column where there are none."""
    kept = tuple(lines)
    noted = any(line.cells[-1] for line in kept)
    if not noted:
        columns, kept = columns[:-1], tuple(Line(x.cells[:-1], x.looks) for x in kept)
    return Table(columns, kept, by, noted, below=tuple(below))


def names(*heads: str) -> tuple[Column, ...]:
    """Columns of words."""
    return tuple(Column(head, right=False) for head in heads)


def numbers(*heads: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(head) for head in heads)


def micro(seconds: float) -> str:
    """Microseconds, for a column that says so."""
    return f"{1e6 * seconds:,.1f}" if seconds < 1e-5 else f"{1e6 * seconds:,.0f}"


def ratio(times: float | None) -> str:
    """How many times as fast ours is, marked where it is slower."""
    if times is None:
        return ""
    return f"{SLOWER} {times:.2f}x" if slower(times) else f"{times:.2f}x"


def slower(times: float | None) -> bool:
    """Whether it is, to the digits that are shown."""
    return times is not None and round(times, 2) < 1


def time_of(seconds: float) -> str:
    """In microseconds, or in milliseconds from ten on."""
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-2 else f"{seconds * 1e3:.1f} ms"


def bytes_of(count: float) -> str:
    """How many, in the unit that fits."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"
