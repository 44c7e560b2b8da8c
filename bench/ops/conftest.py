# SPDX-License-Identifier: Apache-2.0
"""Every file here is an op, and every shape of it a group: ours, each peer there is, and the floor.

    pytest --benchmark-enable bench/ops/bench_linear.py [--shapes all | MODEL]

Without --shapes they are the few of `headrace bench --quick`. Nothing is timed before ours equals
its reference and a peer equals ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import pytest
import torch

from headrace.bench import beside, models, shapes
from headrace.bench.case import MODELS, Case
from headrace.bench.rates import floor_of
from headrace.bench.timing import MultiplyAdds

Run = Callable[[], object]
RATES = MultiplyAdds()


def pytest_addoption(parser):
    parser.addoption("--shapes", default="quick", choices=["quick", "all", *MODELS])


def pytest_generate_tests(metafunc):
    """A case is made to learn its sides, and again when they are timed: not all fit together."""
    op = metafunc.definition.path.stem.removeprefix("bench_")
    found = listed(op, metafunc.config.getoption("--shapes"))
    metafunc.parametrize("side", found, ids=lambda side: f"{side.shape}-{side.name}")


@dataclass(frozen=True)
class Side:
    """One contestant of the nth shape of an op."""

    op: str
    shapes: str
    nth: int
    shape: str
    name: str

    def take(self, benchmark: Callable[[Run], object]) -> None:
        """Times it, beside the others of its group, if it is right."""
        checked = group(self.op, self.shapes, self.nth)
        assert checked.error <= checked.tolerance, "ours is off from its reference"
        if self.name in checked.missing:
            pytest.fail(f"{self.name}: {checked.missing[self.name]}")
        off = checked.apart.get(self.name, 0.0)
        assert off <= beside.ALIKE, f"{self.name} computes something else"
        benchmark.group = f"{self.op} {self.shape}"
        benchmark.extra_info.update(error=off)
        with torch.no_grad():
            benchmark(checked.runs[self.name])


@dataclass(frozen=True)
class Group:
    """A case with all that runs. apart: how far each peer is from ours; missing: why it is not."""

    runs: dict[str, Run]
    error: float
    tolerance: float
    apart: dict[str, float]
    missing: dict[str, str]


def makers(op: str, chosen: str) -> list[Callable[[], Case]]:
    if chosen in MODELS:
        return models.to_make(MODELS[chosen], op, quick=False)
    return shapes.to_make(op, chosen == "quick")


@cache
def listed(op: str, chosen: str) -> list[Side]:
    sides = []
    for nth, make in enumerate(makers(op, chosen)):
        case = make()
        peers, why = beside.every_peer(case, compile=True)
        names = ["ours", *peers, *(["some peers"] if why else []), "floor"]
        sides += [Side(op, chosen, nth, case.shape, name) for name in names]
    return sides


@lru_cache(maxsize=1)
@torch.no_grad()
def group(op: str, chosen: str, nth: int) -> Group:
    case = makers(op, chosen)[nth]()
    told = beside.compared(case, compile=True)  # before anything adds to its state
    runs = {"ours": case.ours, **told.peers, "floor": floor(case)}
    missing = {one.name: one.why for one in told.failed}
    return Group(runs, *case.check(), told.errors, missing)


def floor(case: Case) -> Run:
    """Moves the bytes, and then waits until the multiply-adds could be done."""
    move, least = floor_of(case), case.flops / RATES.rate(case.product)

    def run() -> object:
        until = time.perf_counter() + least
        moved = move()
        while time.perf_counter() < until:
            pass
        return moved

    return run
