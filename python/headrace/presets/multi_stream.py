# SPDX-License-Identifier: Apache-2.0
"""Multi-Stream LLMs: every lane reads or writes one token per step, under one time.

Multi-Stream LLMs (paper). R lanes share the time index: the token of lane r at time t has position
t and sees all lanes at earlier times, and its own past. Lanes with nothing to say pass a blank
token, which the caller chooses.

Oracle: one forward over all lanes under that mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..memory import Region, Sink, Window
from ..streams import Engine, Lane, PerLane, wrap
from ..streams.engine import Model
from .lane_loops import lanes_equality
from .proof import Check, Preset, random_tokens

__all__ = ["multi_stream"]


def multi_stream(
    model: Model,
    *,
    inputs: Sequence[str] = ("user",),
    outputs: Sequence[str] = ("think", "speak"),
    memory: Region | None = None,
    **options: Any,
) -> Engine:
    """An engine whose streams have these lanes, each reading all others.

    inputs: names of those that are fed. outputs: of those that are written. memory: what each of
    them keeps; everything unless it says less. Options as in `headrace.wrap`, whose errors it
    raises.
    """
    names = (*inputs, *outputs)
    lanes = [
        Lane(name, [other for other in names if other != name], "in" if name in inputs else "out")
        for name in names
    ]
    memory = Window(None) if memory is None else memory
    return wrap(model, memory=memory, positions=PerLane(), lanes=lanes, **options)


def check(model: Model, *, steps: int = 60) -> list[Check]:
    """One token of every lane per step, several windows long, against the masked forward."""
    memory = Sink(2) + Window(16)
    with multi_stream(model, memory=memory, page_size=16, pool_pages=96) as engine:
        lanes = [lane.name for lane in engine.lanes]
        said = random_tokens(model, steps * len(lanes)).view(steps, len(lanes), 1)
        return lanes_equality(engine, [dict(zip(lanes, row, strict=True)) for row in said])


PRESET = Preset("multi_stream", "Multi-Stream LLMs (paper)", multi_stream, check, kind="lanes")
