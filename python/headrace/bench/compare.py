# SPDX-License-Identifier: Apache-2.0
"""Figures beside those of another day: what changed, and what is only noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LEAST = 1.05
"""A ratio of times nearer to 1 than this is never called a change."""


@dataclass(frozen=True)
class Change:
    """One shape in both runs. time: ours now over ours then. share: the same of the times over
    their floors, from which a slower day of the machine drops out. noise: how far either may be
    from 1 by the spread of the two runs alone.
    """

    op: str
    shape: str
    time: float
    share: float
    noise: float

    @property
    def verdict(self) -> str:
        """A change shows in both ratios, on the same side, beyond the noise."""
        if min(self.time, self.share) > self.noise:
            return "slower"
        if max(self.time, self.share) < 1 / self.noise:
            return "faster"
        return "noise"


def changes(now: Iterable[Mapping[str, Any]], then: Iterable[Mapping[str, Any]]) -> list[Change]:
    """Every shape that both have and that was right in both; rows as `to_json` gives them."""
    before = {(row["op"], row["shape"]): row for row in then if row["ok"]}
    found = []
    for row in now:
        old = before.get((row["op"], row["shape"]))
        if old is None or not row["ok"]:
            continue
        time = row["ours_s"] / old["ours_s"]
        share = time * old["floor_s"] / row["floor_s"]
        noise = max(LEAST, math.sqrt(_spread(row) * _spread(old)))
        found.append(Change(row["op"], row["shape"], time, share, noise))
    return found


def other(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was not as it is now, of two files of figures: level, threads, versions."""
    lines = []
    for part, names in (
        ("host", ("isa", "threads", "python")),
        ("versions", ("headrace", "torch")),
    ):
        for name in names:
            was, is_ = then[part].get(name), now[part].get(name)
            if was != is_:
                lines.append(f"{name} {was}, now {is_}")
    return lines


def _spread(row: Mapping[str, Any]) -> float:
    low, high = row.get("half") or (1.0, LEAST**2)
    return high / low


def table(found: Iterable[Change]) -> str:
    """One line per shape."""
    head = ("op", "shape", "time over then", "of floor, then over now", "")
    lines = [head]
    for c in found:
        lines.append((c.op, c.shape, f"{c.time:.2f}", f"{c.share:.2f}", c.verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    texts = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])
