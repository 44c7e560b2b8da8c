# SPDX-License-Identifier: Apache-2.0
"""Speed as ratios taken in one run: the kernel, the peer that people use today, and the floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

from .. import ops
from ..errors import bad_value
from . import beside
from .beside import Beside
from .case import MODELS, Case, dtype_name, finite
from .models import of_model
from .rates import floor_of
from .shapes import cases
from .tables import (
    BAD,
    QUIET,
    RIGHT,
    SLOWER,
    WRONG,
    Line,
    Table,
    micro,
    names,
    numbers,
    ratio,
    slower,
    with_notes,
)
from .timing import MultiplyAdds, by_cache, matmul_rate, over, quartiles

__all__ = [
    "MODELS",
    "Beside",
    "Row",
    "cases",
    "each",
    "measure",
    "of_model",
    "run",
    "table",
    "to_json",
]


@dataclass
class Row:
    """One measured shape. Times are medians in seconds with warm caches: the three calls before
    were the same one. `notes` are ratios by name.

    half: between which seconds half of our times lie. bytes, flops: the least that the shape needs.
    product: dtype of the factors of its products. rates: bytes/s of moving as many bytes, FLOP/s
    of multiply-adds of that dtype in registers. peer_ok: that the peer computed the same.
    beside: ours, the floor and every peer, where those were asked for.

    floor_s is the larger of the seconds that moving as many bytes takes, in a call of its own, and
    the FLOPs over the rate of multiply-adds, both measured in the same run. It counts what the
    result needs and not what our way to it adds: a product of two bf16 is one product, of bf16.
    Without `ok` no ratio is shown, without `peer_ok` none to the peer.
    """

    op: str
    shape: str
    ours_s: float
    peer_name: str
    peer_s: float | None
    floor_s: float
    error: float
    tolerance: float
    ok: bool
    notes: dict[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    flops: float = 0.0
    half: tuple[float, float] | None = None
    rates: tuple[float, float] | None = None
    beside: list[Beside] = field(default_factory=list)
    product: str = ""
    peer_ok: bool = True

    @property
    def speedup(self) -> float | None:
        """Peer's time over ours."""
        return self.peer_s / self.ours_s if self.ok and self.peer_ok and self.peer_s else None

    @property
    def of_floor(self) -> float | None:
        """Share of what the machine can do at most."""
        return self.floor_s / self.ours_s if self.ok else None


def measure(
    case: Case,
    seconds: float,
    fma: float,
    matmul: float,
    told: beside.Compared,
    every: bool = False,
    say: Callable[[str], object] = str,
    most: int = 200,
) -> Row:
    """Checks one case against its reference and times it beside its peers and its bytes: `seconds`
    for each, `most` calls of it. fma: FLOP/s of multiply-adds of its dtype. told: the peers that
    run. every: all of them go into the row, with warm and with cold caches. say: is told what goes
    on."""
    say("its result")
    error, tolerance = case.check()
    say("in turns with every peer and the floor" if every else "in turns with the peer")
    runs = {"ours": case.ours, "floor": floor_of(case)} | told.peers
    taken = by_cache(runs, seconds, most, cold=every)
    times = {name: median(each) for name, each in taken["warm"].items()}
    # Variants take turns with ours alone: each finds the cache as the other left it.
    notes = {
        f"time over {name}": over(case.ours, run, seconds, most=most)
        for name, run in case.others.items()
    }
    least = case.flops / fma
    if least > times["floor"]:
        notes["share of matmul rate"] = case.flops / times["ours"] / matmul
    return Row(
        case.op,
        case.shape,
        times["ours"],
        case.peer_name,
        times.get(case.peer_name),
        max(times["floor"], least),
        error,
        tolerance,
        error <= tolerance,
        notes,
        case.bytes,
        case.flops,
        quartiles(taken["warm"]["ours"]),
        (case.bytes / times["floor"], fma),
        beside.listed(told, taken, least) if every else [],
        dtype_name(case.product),
        told.errors.get(case.peer_name, math.inf) <= beside.ALIKE,
    )


def each(
    op: str | None = None,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
    shapes: str | None = None,
    peers: bool = False,
    budget: float | None = None,
    only: Container[str] | None = None,
) -> Iterator[Row]:
    """Benchmarks one op or all of them, a shape at a time. quick: few shapes, under half a minute.
    shapes: those of a model of `MODELS`, for the ops whose shapes a model has. peers: beside every
    peer that is there, with warm and with cold caches; those that need torch's compiler are left
    out of what is quick.
    budget: seconds for the calls of each of ours, the floor and every peer of a shape (1, or 0.05
    if quick), for each state of the cache; few calls are enough of what takes long, and 60 of what
    is quick. progress: is told what goes on. only: shapes of these names.

    Raises ValueError for an unknown op or model, or a budget that is no time.
    """
    if op is not None and op not in ops.specs():
        raise bad_value("bench", "op", "one of " + ", ".join(sorted(ops.specs())), repr(op))
    if shapes is not None and shapes not in MODELS:
        raise bad_value("bench", "shapes", "one of " + ", ".join(MODELS), repr(shapes))
    if budget is not None and not 0 < budget < math.inf:
        raise bad_value("bench", "budget", "seconds, above 0", budget)
    seconds = budget or (0.05 if quick else 1.0)
    chosen = cases(op, quick) if shapes is None else of_model(MODELS[shapes], op, quick)
    calls, rates = (60, MultiplyAdds(0.005, 0.1)) if quick else (200, MultiplyAdds())
    matmul, nth = matmul_rate(1024, 0.15) if quick else matmul_rate(2048), 0
    for nth, case in enumerate(chosen, 1):
        if only is not None and case.shape not in only:
            continue
        with torch.no_grad():
            say = _saying(case, nth, progress)
            told = beside.compared(case, peers, not quick, say)
            fma = rates.rate(case.product)
            row = measure(case, seconds, fma, matmul, told, peers, say, calls)
        yield row
    if not nth:
        raise bad_value("bench", "op", "one whose shapes follow from a model", repr(op))


def run(*args: Any, **kwargs: Any) -> list[Row]:
    """All that `each` gives; it takes the same."""
    return list(each(*args, **kwargs))


def _saying(case: Case, nth: int, progress: Callable[[str], None] | None) -> Callable[[str], None]:
    def say(what: str) -> None:
        if progress is not None:
            progress(f"{case.op} {nth}: {case.shape}: {what}")

    return say


def table(rows: Iterable[Row]) -> Table:
    """The rows: time, check, ratio to the peer, share of the floor."""
    rows = list(rows)
    columns = (
        *names("op", "shape"), *numbers("ours, us"), *names("check", "peer"),
        *numbers("speed-up", "of floor"), *names("notes"),
    )  # fmt: skip
    return with_notes(columns, map(_line, rows), 1, _worst(rows))


def _line(row: Row) -> Line:
    mark = f"{RIGHT if row.ok else WRONG} {row.error:.1e}"
    speedup, share = row.speedup, row.of_floor
    notes = ", ".join(f"{name} {value:.2f}" for name, value in row.notes.items()) if row.ok else ""
    cells = (
        row.op, row.shape, micro(row.ours_s), mark, row.peer_name, ratio(speedup),
        "" if share is None else f"{share:.0%}", notes,
    )  # fmt: skip
    looks = {7: QUIET} | ({5: BAD} if slower(speedup) else {}) | ({} if row.ok else {3: BAD})
    return Line(cells, looks)


def _worst(rows: list[Row]) -> Iterator[str]:
    """What is marked, in a line: easily missed among many."""
    wrong = sum(not row.ok for row in rows)
    if wrong:
        yield f"{WRONG} wrong results: {wrong} of {len(rows)} shapes"
    behind = [(row.speedup, row) for row in rows if row.speedup and slower(row.speedup)]
    if behind:
        least, row = min(behind, key=lambda pair: pair[0])
        told = f"{SLOWER} slower than the peer: {len(behind)} of {len(rows)} shapes"
        yield f"{told}, at the worst {least:.2f}x: {row.op} {row.shape}"


def to_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The rows, and geometric means per op."""
    rows = list(rows)
    means = {}
    for op in sorted({row.op for row in rows}):
        ratios = [r.speedup for r in rows if r.op == op and r.speedup is not None]
        if ratios:
            means[op] = math.exp(sum(map(math.log, ratios)) / len(ratios))
    found = {
        "rows": [asdict(r) | {"speedup": r.speedup, "of_floor": r.of_floor} for r in rows],
        "geometric_mean_speedup": means,
    }
    made: dict[str, Any] = finite(found)
    return made
