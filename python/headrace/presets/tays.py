# SPDX-License-Identifier: Apache-2.0
"""TaYS: thinking as you see, a lane of thoughts beside the lane of frames.

Frames come in without end under a window of their own; the thoughts read them, and an answer lane
reads both. Frames and thoughts advance in one step. Groups of positions count from 0 each. The
lengths are those of the caller; the source's are for its own models.

Oracle: one masked forward over all lanes.
"""

from __future__ import annotations

from typing import Any

import torch

from ..memory import Region, Sink, Window
from ..streams import Engine, Lane, PerLane, wrap
from ..streams.engine import Model
from .lane_loops import lanes_equality, together
from .proof import Check, Preset, random_tokens

__all__ = ["tays"]


def tays(
    model: Model, *, frames: Region | None = None, thoughts: Region | None = None, **options: Any
) -> Engine:
    """An engine whose streams have the lanes frames, thoughts and answer.

    frames, thoughts: what these keep; by default everything. Options as in `headrace.wrap`, whose
    errors it raises.
    """
    lanes = (
        Lane("frames", memory=frames),
        Lane("thoughts", reads=("frames",), kind="latent", memory=thoughts),
        Lane("answer", reads=("frames", "thoughts"), kind="out"),
    )
    return wrap(model, memory=Window(None), positions=PerLane(), lanes=lanes, **options)


def check(model: Model, *, frames: int = 10, size: int = 10) -> list[Check]:
    """Frames that are evicted while thoughts are written, then an answer over what is left."""
    parts = random_tokens(model, frames * size).split(size)
    kept, own = Sink(2) + Window(40), Window(12)
    with tays(model, frames=kept, thoughts=own, page_size=16, pool_pages=96) as engine:
        stream = engine.open_lanes()
        steps = together(stream, parts, reads="frames", writes="thoughts", begin=0, each=3)
        steps += [{"answer": torch.tensor([i])} for i in range(6)]
        stream.close()
        return lanes_equality(engine, steps)


PRESET = Preset("tays", "Think as You See (TaYS), its released loop", tays, check, kind="lanes")
