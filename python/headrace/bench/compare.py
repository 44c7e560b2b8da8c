# SPDX-License-Identifier: Apache-2.0
"""Figures beside those of another day: what changed, and what is only noise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .tables import BAD, GOOD, QUIET, Line, Table, names, numbers

Rows = Mapping[str, Any]
LEAST = 1.05
"""A ratio of times nearer to 1 than this is never called a change."""
ALONE = 1.5
"""A single call has no spread: what is no farther from 1 than this may be noise."""
AGAIN = 2
"""What seems a change is measured so many times more: a spell that falls on ours alone passes."""


@dataclass(frozen=True)
class Change:
    """One shape in both runs. time: ours now over ours then. share, peer: the same of the times
    over their floors and over their peers, from which a slower spell of the machine drops out; peer
    is None where there was none. noise: how far each may be from 1 by the spread of the two runs
    alone. single: that one of them has no spread, being of a single call.
    """

    op: str
    shape: str
    time: float
    share: float
    noise: float
    peer: float | None = None
    single: bool = False

    @property
    def least(self) -> float:
        """How many times as slow it is by the kindest of the three; below 1 where all are."""
        ratios = [self.time, self.share, *([] if self.peer is None else [self.peer])]
        if min(ratios) > 1:
            return min(ratios)
        return max(ratios) if max(ratios) < 1 else 1.0

    @property
    def verdict(self) -> str:
        """A change shows in all ratios, on the same side, beyond the noise."""
        if self.least > self.noise:
            return "slower"
        return "faster" if self.least < 1 / self.noise else "noise"


def changes(now: Iterable[Rows], then: Iterable[Rows]) -> list[Change]:
    """Every shape that both have and that was right in both; rows as `to_json` gives them."""
    before = {(row["op"], row["shape"]): row for row in then if row["ok"]}
    found = []
    for row in now:
        old = before.get((row["op"], row["shape"]))
        if old is None or not row["ok"]:
            continue
        time = row["ours_s"] / old["ours_s"]
        share = time * old["floor_s"] / row["floor_s"]
        same = row["peer_name"] == old["peer_name"] and row["peer_s"] and old["peer_s"]
        peer = time * old["peer_s"] / row["peer_s"] if same else None
        single = _single(row) or _single(old)
        noise = max(ALONE if single else LEAST, math.sqrt(_spread(row) * _spread(old)))
        found.append(Change(row["op"], row["shape"], time, share, noise, peer, single))
    return found


def confirmed(
    found: Iterable[Change],
    then: Sequence[Rows],
    again: Callable[[str, set[str]], Iterable[Rows]],
    times: int = AGAIN,
) -> list[Change]:
    """The changes with what seems one measured anew, so many times: of each shape the measurement
    that says the least stays, and noise is at least what lies between them. again: rows of some
    shapes of an op."""
    kept = {(c.op, c.shape): c for c in found}
    for _ in range(times):
        doubted: dict[str, set[str]] = {}
        for c in kept.values():
            if c.verdict != "noise":
                doubted.setdefault(c.op, set()).add(c.shape)
        for op, shapes in doubted.items():
            for c in changes(again(op, shapes), then):
                was = kept[c.op, c.shape]
                apart = max(c.least / was.least, was.least / c.least)
                nearer = min(was, c, key=lambda one: abs(math.log(one.least)))
                kept[c.op, c.shape] = replace(nearer, noise=max(was.noise, c.noise, apart))
    return list(kept.values())


def other(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was not as it is now, of two files of figures: level, threads, versions."""
    lines = []
    for part, told in (("host", ("isa", "threads", "python")), ("versions", ("headrace", "torch"))):
        for name in told:
            was, is_ = then[part].get(name), now[part].get(name)
            if was != is_:
                lines.append(f"{name} {was}, now {is_}")
    return lines


def _spread(row: Rows) -> float:
    low, high = row.get("half") or (1.0, LEAST**2)
    return high / low


def _single(row: Rows) -> bool:
    """Quartiles of more calls than one are never the same but by chance."""
    low, high = row.get("half") or (1.0, LEAST)
    return bool(low == high)


def table(found: Iterable[Change]) -> Table:
    """One line per shape."""
    columns = (
        *names("op", "shape"),
        *numbers("time over then", "over the floor's", "over the peer's", "noise"),
        *names("verdict"),
    )
    looks = {"slower": BAD, "faster": GOOD, "noise": QUIET}
    lines = tuple(
        Line(
            (
                c.op, c.shape, f"{c.time:.2f}", f"{c.share:.2f}",
                "" if c.peer is None else f"{c.peer:.2f}", f"{c.noise:.2f}",
                f"{c.verdict}, of one call" if c.single else c.verdict,
            ),
            {6: looks[c.verdict]},
        )
        for c in found
    )  # fmt: skip
    many = Counter(line.cells[-1].partition(",")[0] for line in lines)
    told = ", ".join(f"{many[verdict]} {verdict}" for verdict in looks if many[verdict])
    return Table(columns, lines, by=1, below=(f"of {len(lines)} shapes: {told}",) if told else ())
