# SPDX-License-Identifier: Apache-2.0
"""Streams that have memory, positions or lanes of their own, and room for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..adapters import Adapter
from ..errors import bad_type, bad_value, unsupported
from ..memory import UNLIMITED, Lease, Plan, Region, Spill, Table, most_pages
from ..memory.regions import compile_plan
from . import spatial
from .folding import check_model
from .lane import Lane, Lanes, check_lanes, connected
from .positions import KNOWN, InCache, PerLane, Positions
from .stream import Stream

if TYPE_CHECKING:
    from .engine import Engine

STREAMS = 16
"""Streams that a pool of the default size has room for."""
DENSE_TOKENS = 1 << 16
"""Tokens that it has room for when the window is unlimited."""


def plan(engine: Engine, op: str, memory: Region | None, positions: Positions | None) -> Plan:
    """Of a stream; what it has not of its own is the engine's."""
    memory = engine.memory if memory is None else memory
    positions = engine.positions if positions is None else positions
    if isinstance(memory, Spill):
        hint = "give the engine the Archive"
        raise unsupported(op, "memory", "regions without an Archive", repr(memory), hint)
    if not isinstance(positions, Positions):
        raise bad_type(op, "positions", KNOWN, repr(positions))
    # What a choice leaves is packed, or not, as the engine's own streams are.
    chooses = op == "open" and isinstance(positions, InCache) == engine.packs
    made = positions.place(compile_plan(memory, chooses, folding=op == "open"))
    check_model(engine.model, made.fold)
    spatial.check(op, engine.model, positions, made, archived=False)
    return made


def open_lanes(
    engine: Engine,
    position: int,
    adapter: str | Adapter | None,
    lanes: Sequence[Lane] | None,
    positions: PerLane | None,
) -> Lanes:
    """What `Engine.open_lanes` does."""
    op = "open_lanes"
    places = positions or (engine.positions if lanes is None else PerLane())
    mine = engine.lanes if lanes is None else lanes
    if not isinstance(places, PerLane) or not mine:
        raise bad_value(op, "engine", "one with lanes", "none", "call open()")
    if lanes is None and positions is None:
        plans = engine._lane_plans
    else:
        mine = check_lanes(mine, places, op)
        plans = {lane.name: plan(engine, op, lane.memory, places) for lane in mine}
    chosen = engine._adapter(op, adapter)
    opened: dict[str, Stream] = {}
    for lane in mine:
        start = places.starts.get(lane.name, 0)
        at = position + (start if isinstance(start, int) else 0)
        table = Table(at, at, plans[lane.name])
        opened[lane.name] = engine._adopt(Stream(engine, Lease(engine.pool, table), adapter=chosen))
    return Lanes(engine, connected(opened, mine, places), mine, places)


def default_pages(plan: Plan, page_size: int, chunk: int) -> int:
    """Of a pool whose size nobody says."""
    if plan.choice is not None and plan.choice.capacity is not None:
        # Before and after the step, and what comes in it.
        return STREAMS * 2 * most_pages(plan.choice.capacity + chunk, page_size)
    if plan.reach >= UNLIMITED:
        return plan.pinned_pages(page_size) + -(-DENSE_TOKENS // page_size)
    # A step of several chunks keeps what the window was until it succeeds, beside what it becomes.
    window = 2 * plan.window_pages(page_size) + -(-chunk // page_size) + 1
    return STREAMS * (plan.pinned_pages(page_size) + window)
