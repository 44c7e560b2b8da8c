# SPDX-License-Identifier: Apache-2.0
"""Aims of whole loops, of cost as work grows, and of every op at every one of its shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from aim import Aim, Record
from machines import MAIN, XEON

from headrace import ops

WHY: dict[str, str | dict[str, str]] = {
    "append": "a single token: a call of an op costs about what torch takes for all of it",
    "linear": {MAIN: "bf16, hundreds of rows: oneDNN runs nearer to the rate of bf16 pairs; its"
               " sums know how many rows there are, which `exact=False` allows",
               XEON: "fp32, 256 rows 256 deep: 0.81 to 1.15 in several runs; a sixth of the time"
               " goes to adding as few rows do, so that a row keeps its bits; `exact=False` leaves"
               " it to torch"},
    "lora": {MAIN: "bf16, many rows of one adapter: two products of bf16 pairs, whose bridge is"
             " rounded to bf16; ours is two bf16, so that it keeps its digits"},
}  # fmt: skip


def shapes() -> Iterator[Aim]:
    """No op is slower than what it stands for, at any shape, be it small."""
    for op in ops.specs():
        for which, file in (("every shape", f"bench-{op}.json"), ("quick shapes", "quick.json")):
            yield Aim(
                "ops", f"`{op}`, {which}: the peer's time over it, worst", file, _least(op), 1.0,
                why=WHY.get(op, ""),
            )  # fmt: skip


def _least(op: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        # A peer that computed something else has no ratio; one of ours that did is an error.
        rows = [row for row in record["rows"] if row["op"] == op and row.get("peer_ok", True)]
        others = [row for row in rows if not row["peer_name"].startswith(("ours", "the base"))]
        return min((float(row["speedup"]) for row in others), default=None)

    return measure


def point(at: int, side: str, key: str = "median") -> Callable[[Record], float]:
    """How many times as much ours does, at one size of the one loop of a record."""

    def measure(record: Record) -> float:
        ((found),) = [p for p in record["loops"][0]["points"] if p["at"] == at]
        return float(found["speedup"][side][key])

    return measure


def loops() -> Iterator[Aim]:
    yield Aim(
        "loops", "a token behind sinks and a window of 4,096: recomputation's time over it"
        " (StreamingLLM's own, at its largest window: 22.2)",
        "loop-streaming.json", point(4096, "recomputation"), 22.2,
    )  # fmt: skip


def slope(name: str, key: str = "slope") -> Callable[[Record], float]:
    """Of one series of the one work of a record."""

    def measure(record: Record) -> float:
        series: list[dict[str, Any]] = record["scaling"][0]["series"]
        ((found),) = [one for one in series if one["name"] == name]
        return float(found[key])

    return measure


def scaling() -> Iterator[Aim]:
    yield Aim(
        "cost as work grows", "a token over 1,000 to 4,096,000 tokens of its stream: the exponent",
        "scale-length.json", slope("sinks and a window"), most=0.03, unit="",
    )  # fmt: skip
