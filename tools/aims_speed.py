# SPDX-License-Identifier: Apache-2.0
"""Aims of whole loops, of cost as work grows, and of every op at every one of its shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aim import Aim, Record, Why
from machines import XEON, ZEN4, ZEN5

from headrace import ops

FEW = 3
"""Calls, below which a median has no spread."""
CALL = "small shapes: what a call costs by itself, whose code and arguments come from memory too"


def _since(why: str = "") -> Callable[[Record], str]:
    """Of a record that has not been taken again on its machine since its kernels changed."""

    def told(record: Record) -> str:
        by = f"by the kernels of {record['taken'][:10]}, commit {record['commit'][:7]}"
        return f"{why}; {by}" if why else by

    return told


COLD: dict[str, Why | dict[str, Why]] = {
    "append": _since(CALL),
    "scatter_back": _since(CALL),
    "select": _since(CALL),
    "segment_reduce": CALL,
    "linear": {ZEN5: _since(f"bf16 as with warm caches; fp16 of one row is among the {CALL}"),
               ZEN4: CALL, XEON: "as with warm caches"},
}  # fmt: skip
WARM: dict[str, Why | dict[str, Why]] = {
    "append": "a single token: a call of an op costs about what torch takes for all of it",
    "linear": {**dict.fromkeys((ZEN5, ZEN4), "bf16, hundreds of rows: oneDNN runs nearer to the"
                               " rate of bf16 pairs; its sums know how many rows there are, which"
                               " `exact=False` allows"),
               XEON: "fp32, hundreds of rows: a part of the time goes to adding as few rows do, so"
               " that a row keeps its bits; `exact=False` leaves it to torch"},
    "lora": dict.fromkeys((ZEN5, ZEN4), "bf16, many rows of one adapter: two products of bf16"
                          " pairs, whose bridge is rounded to bf16; ours is two bf16, so that it"
                          " keeps its digits; `exact=False` leaves such rows to torch"),
    "merge_states": "torch's compiler makes one pass over the same bytes too",
    "block_score": {ZEN5: _since("one layer of 16k tokens, whose keys the cache holds: torch,"
                                 " folded, is one product over all heads")},
    "assign": {ZEN5: _since()},
    "select": {ZEN5: _since("64 scores: what a call costs by itself")},
}  # fmt: skip


@dataclass(frozen=True)
class Rival:
    """A peer of one shape that computed the same: its time over ours. near: half of its times and
    half of ours overlap. alone: it is the only peer that the record has of the shape.
    """

    ratio: float
    shape: str
    peer: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)
    calls: int = FEW
    near: bool = False
    alone: bool = False

    @property
    def told(self) -> str:
        ours, theirs = map(_time, self.seconds)
        within = ", within the spread of the calls" if self.near else ""
        return f"{self.shape} beside {self.peer}, {ours} against {theirs}{within}"


def _time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} us"


def rivals(record: Record, op: str, state: str) -> list[Rival]:
    """Every peer of every shape, with caches that are "warm" or "cold". Where a record has only the
    first peer, with warm caches, that one. Neither a peer that computed something else counts, nor
    ours in another form."""
    found = []
    for row in (row for row in record["rows"] if row["op"] == op):
        if row.get("beside"):
            found += _beside(row, state)
        elif state == "warm" and row.get("peer_ok", True) and not _is_ours(row["peer_name"]):
            pair = row.get("ours_s", 0.0), row.get("peer_s", 0.0)
            # One of ours that was wrong has no ratio: an error.
            ratio, shape = float(row["speedup"]), row.get("shape", "")
            found.append(Rival(ratio, shape, row["peer_name"], pair, alone=True))
    return found


def _is_ours(name: str) -> bool:
    return name == "floor" or name.startswith(("ours", "the base"))


def _beside(row: Record, state: str) -> Iterator[Rival]:
    (ours,) = [one for one in row["beside"] if one["name"] == "ours"]
    if not row["ok"]:
        raise ValueError(f"a wrong result: {row['op']} {row['shape']}")
    for one in row["beside"]:
        if one["ok"] and one["warm_s"] and not _is_ours(one["name"]):
            pair = ours[f"{state}_s"], one[f"{state}_s"]
            # Of calls warm and cold, or of those that stand for both.
            calls = min(each["calls"][-1 if state == "cold" else 0] for each in (ours, one))
            half = ours.get(f"{state}_half"), one.get(f"{state}_half")
            near = all(half) and max(half[0][0], half[1][0]) <= min(half[0][1], half[1][1])
            ratio = pair[1] / pair[0]
            yield Rival(ratio, row["shape"], one["name"], pair, calls, bool(near))


@dataclass(frozen=True)
class Least:
    """The least of what the peers of an op take over ours, over all shapes."""

    op: str
    state: str = "warm"
    every: bool = True
    """Whether the record is to have every peer."""

    def __call__(self, record: Record) -> float | None:
        return min((one.ratio for one in rivals(record, self.op, self.state)), default=None)

    def where(self, record: Record, met: bool) -> str:
        """Where that is, if it is short; what the record lacks; how many shapes rest on too few
        calls."""
        found = rivals(record, self.op, self.state)
        told = [] if met else list(_behind(found))
        if self.every and all(one.alone for one in found):
            told.append("beside one peer alone")
        few = {one.shape for one in found if one.calls < FEW}
        if few:
            many = "a shape" if len(few) == 1 else f"{len(few)} shapes"
            told.append(f"fewer than {FEW} calls of a side at {many}")
        return "; ".join(told)


def _behind(found: list[Rival]) -> Iterator[str]:
    """The worst, how many shapes are behind, and whether another peer is ahead of any."""
    least = min(found, key=lambda one: one.ratio)
    short = {one.shape for one in found if one.ratio < 1}
    yield least.told
    if len(short) > 1:
        yield f"{len(short)} of {len({one.shape for one in found})} shapes are short"
    others = [one.ratio for one in found if one.peer != least.peer]
    if others and min(others) >= 1:
        yield f"{min(others):.3g}x or more beside every other peer"


def shapes() -> Iterator[Aim]:
    """No op is slower than what it stands for, at any shape, be it small."""
    for op in ops.specs():
        file = f"bench-{op}.json"
        warm, cold = WARM.get(op, ""), COLD.get(op, WARM.get(op, ""))
        for which, at, state, why in (
            ("every shape and peer, warm caches", file, "warm", warm),
            ("every shape and peer, cold caches", file, "cold", cold),
            ("quick shapes", "quick.json", "warm", warm),
        ):
            least = Least(op, state, every=at == file)
            yield Aim(
                "ops", f"`{op}`, {which}: the peer's time over it, worst", at, least, 1.0, why=why,
                where=least.where,
            )  # fmt: skip


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
