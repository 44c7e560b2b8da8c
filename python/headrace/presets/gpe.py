# SPDX-License-Identifier: Apache-2.0
"""GPE: source and target count their positions in groups of their own, and alternate by wait-k.

LLM as Effective Streaming Processor (group position encoding), 2025; what is known here is its
released loop. Source ids run 0, 1, ... and target ids phi, phi + 1, ..., phi = 0 by default; source
sees source alone, a target token sees the source read so far and the target. The released code puts
both caches together at every switch; here the target's queries read the source's pages.

Oracle: one forward over source and target under the streaming mask, at those ids.
"""

from __future__ import annotations

from typing import Any

from ..memory import Region, Window
from ..streams import Engine, Lane, PerLane, WaitK, wrap
from ..streams.engine import Model
from .lane_loops import alternate, lanes_equality
from .proof import Check, Preset, random_tokens

__all__ = ["gpe"]

LANES = (Lane("source"), Lane("target", reads=("source",), kind="out"))


def gpe(model: Model, *, phi: int = 0, memory: Region | None = None, **options: Any) -> Engine:
    """An engine whose streams have the lanes source and target, each with positions of its own.

    phi: the first position of the target. memory: what each of them keeps; everything unless it
    says less. Options as in `headrace.wrap`, whose errors it raises.
    """
    memory = Window(None) if memory is None else memory
    return wrap(model, memory=memory, positions=PerLane({"target": phi}), lanes=LANES, **options)


def check(model: Model, *, k: int = 3, count: int = 40) -> list[Check]:
    """Wait-k, greedy, against the masked forward, token for token."""
    source = random_tokens(model, count)
    with gpe(model, page_size=16, pool_pages=64) as engine:
        stream = engine.open_lanes()
        steps = alternate(
            stream, source, WaitK(k), reads="source", writes="target", begin=0, count=count
        )
        stream.close()
        return lanes_equality(engine, steps, greedy="target")


PRESET = Preset(
    "gpe",
    "LLM as Effective Streaming Processor (2025), its released loop",
    gpe,
    check,
    kind="lanes",
)
