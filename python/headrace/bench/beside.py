# SPDX-License-Identifier: Apache-2.0
"""Ours beside every peer there is: equality first, caches warm and cold, medians and spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import tables
from .case import Case, rms_error
from .tables import BAD, QUIET, RIGHT, SLOWER, STRONG, WRONG, Line, Table
from .timing import quartiles

if TYPE_CHECKING:
    from . import Row

ALIKE = 0.02
"""RMS of the difference from ours, over ours, up to which a peer computes the same: its
intermediate results may be in bf16."""

Half = tuple[float, float]
Taken = Mapping[str, Mapping[str, list[float]]]


@dataclass(frozen=True)
class Beside:
    """One contestant of a shape. Times are medians in seconds by the state of the cache; half:
    between which seconds half of them lie. calls: how many were timed, warm and cold; one number
    where the same ones stand for both. error: from ours, relative; None of ours and the floor. ok:
    that it computed the same. why: the reason for no time at all.
    """

    name: str
    warm_s: float | None = None
    warm_half: Half | None = None
    cold_s: float | None = None
    cold_half: Half | None = None
    calls: tuple[int, ...] = ()
    error: float | None = None
    ok: bool = True
    why: str = ""


def every_peer(case: Case, compile: bool = False) -> tuple[dict[str, Callable[[], object]], str]:
    """The peers of a case by name, and why some could not be made. compile: those too that torch's
    compiler has to make."""
    found = first_peer(case) | case.rivals
    try:
        found |= case.more(compile)
    except (ImportError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        return found, _reason(error)
    return found, ""


def first_peer(case: Case) -> dict[str, Callable[[], object]]:
    """The one that people use today, by name."""
    return {case.peer_name: case.peer} if case.peer is not None else {}


def difference(case: Case, name: str, run: Callable[[], object]) -> float:
    """RMS of what a peer gives less what ours gives, over ours; infinite for another size."""
    before = [x.clone() for x in case.state]

    def result(name: str, run: Callable[[], object]) -> Tensor:
        for x, was in zip(case.state, before, strict=True):
            x.copy_(was)
        if name in case.results:
            return case.results[name]().flatten()
        made = run()
        parts = made if isinstance(made, tuple | list) else (made,)
        first = [x for x in parts if isinstance(x, Tensor)][:1]
        return torch.cat([x.detach().flatten() for x in (*first, *case.state)])

    want, got = result("ours", case.ours), result(name, run)
    for x, was in zip(case.state, before, strict=True):
        x.copy_(was)
    if got.numel() != want.numel() or not got.numel():
        return math.inf
    return rms_error(got, want, torch.float32)


@dataclass
class Compared:
    """The peers of a case that run, how far each is from ours, and those that do not run."""

    peers: dict[str, Callable[[], object]]
    errors: dict[str, float]
    failed: list[Beside]


def compared(
    case: Case, every: bool = True, compile: bool = False, say: Callable[[str], object] = str
) -> Compared:
    """To be done before anything is timed: what adds to its state would drown the differences.
    every: the first peer and all others. say: is told whose turn it is."""
    peers, why = every_peer(case, compile) if every else (first_peer(case), "")
    told = Compared({}, {}, [])
    for name, run in peers.items():
        say(f"{name}, its result")
        try:
            told.errors[name] = difference(case, name, run)
            told.peers[name] = run
        except Exception as error:  # of another package: it must not end the rest
            told.failed.append(Beside(name, ok=False, why=_reason(error)))
    if why:
        told.failed.append(Beside("some peers", ok=False, why=why))
    return told


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def listed(told: Compared, taken: Taken, least: float) -> list[Beside]:
    """Ours, the floor and every peer from their times by the state of the cache. least: seconds
    that the multiply-adds need, below which there is no floor."""
    made = []
    for name in ("ours", "floor", *told.peers):
        bound = least if name == "floor" else 0.0
        times = {kind: [max(t, bound) for t in taken[kind][name]] for kind in taken}
        error = told.errors.get(name)
        lists = [taken["warm"][name], taken["cold"][name]]
        calls = tuple(len(each) for each in lists[: 1 if lists[0] is lists[1] else 2])
        made.append(
            Beside(
                name, median(times["warm"]), quartiles(times["warm"]),
                median(times["cold"]), quartiles(times["cold"]), calls,
                error, error is None or error <= ALIKE,
            )
        )  # fmt: skip
    return made + told.failed


def table(rows: Iterable[Row], aside: Iterable[str] = ()) -> Table:
    """A line for each contestant of each shape. No ratio where ours is wrong, and none to a peer
    that computes something else. aside: peers that are not there."""
    columns = (
        *tables.names("op", "shape", "", "check"),
        *tables.numbers("warm, us", "half within", "ours is", "cold, us", "ours is", "calls"),
        *tables.names("notes"),
    )
    lines, behind, peers = [], 0, 0
    for row in rows:
        ours = next((b for b in row.beside if b.name == "ours"), None)
        shown: tuple[str, str] = (row.op, row.shape)
        for one in row.beside:
            times = _ratios(row, ours, one)
            lines.append(_line(shown, row, one, times))
            shown = ("", "")
            behind += any(map(tables.slower, times)) and one.name != "floor"
            peers += one is not ours and one.name != "floor"
    below = [f"{SLOWER} slower than the peer: {behind} of {peers} peers"] if behind else []
    below += [f"not here: {line}" for line in aside]
    return tables.with_notes(columns, lines, 2, below)


def _ratios(row: Row, ours: Beside | None, one: Beside) -> list[float | None]:
    """Its times over ours, warm and cold; None where there is nothing to say."""
    if not (row.ok and one.ok and ours is not None and ours is not one):
        return [None, None]
    pairs = ((ours.warm_s, one.warm_s), (ours.cold_s, one.cold_s))
    return [their / mine if mine and their else None for mine, their in pairs]


def _line(shown: tuple[str, str], row: Row, one: Beside, times: list[float | None]) -> Line:
    look = {"ours": {2: STRONG}, "floor": dict.fromkeys((2, 4, 5, 6, 7, 8, 9), QUIET)}
    looks = look.get(one.name, {}) | {10: QUIET}
    error, ok = (row.error, row.ok) if one.name == "ours" else (one.error, one.ok)
    mark = RIGHT if ok else WRONG
    if not ok:
        looks[3] = BAD
    if one.warm_s is None or one.cold_s is None or one.warm_half is None:
        return Line((*shown, one.name, mark, *[""] * 6, one.why), looks)
    check = "" if error is None else f"{mark} {error:.1e}"
    if one.name == "floor":
        ratios = ["" if share is None else f"at {share:.0%}" for share in times]
    else:
        ratios = [tables.ratio(each) for each in times]
        looks |= {at: BAD for at, each in zip((6, 8), times, strict=True) if tables.slower(each)}
    low, high = one.warm_half
    spread = f"\u00b1 {(high - low) / one.warm_s / 2:.0%}" if min(one.calls) > 2 else ""
    cells = (
        *shown, one.name, check, tables.micro(one.warm_s), spread, ratios[0],
        tables.micro(one.cold_s), ratios[1], " + ".join(map(str, one.calls)), "",
    )  # fmt: skip
    return Line(cells, looks)
