# SPDX-License-Identifier: Apache-2.0
"""StreamingThinker: it thinks about each unit of the input as soon as the unit is there.

A unit is a sentence that ends in a marker; a thought about it ends in an end-of-thought token or at
a budget. Source and thoughts are lanes with positions of their own, from 0 each. The released loop
is sequential, and so is this one: a unit is read, then thought about. Its depths are budgets here:
D1 answers at once after the last thought, D2 and D3 give the last one more tokens.

Waiting tokens: those written between the end of the input and the answer. Oracle: one forward under
the streaming mask, in which a thought sees its unit and those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Region, Window
from ..streams import Engine, Lane, Lanes, Marker, PerLane, Signal, wrap
from ..streams.engine import Model
from .lane_loops import Step, lanes_equality
from .proof import Check, Preset, random_tokens

__all__ = ["streaming_thinker", "think", "units", "waiting"]

LANES = (Lane("source"), Lane("thoughts", reads=("source",), kind="latent"))


def streaming_thinker(model: Model, *, memory: Region | None = None, **options: Any) -> Engine:
    """An engine whose streams have the lanes source and thoughts; see `think`.

    memory: what each of them keeps; everything unless it says less. Options as in `headrace.wrap`,
    whose errors it raises.
    """
    memory = Window(None) if memory is None else memory
    return wrap(model, memory=memory, positions=PerLane(), lanes=LANES, **options)


def units(source: Tensor, marker: Sequence[int]) -> list[Tensor]:
    """The source cut after every marker."""
    gate, ends = Marker(marker), []
    for i in range(len(source)):
        if gate(Signal(tail=source[: i + 1][-len(marker) :].tolist())):
            ends.append(i + 1)
    return [part for part in source.tensor_split(ends) if len(part)]


def think(
    stream: Lanes, parts: Sequence[Tensor], *, begin: int, end: int, budget: int
) -> list[Step]:
    """Reads a unit, then writes about it, greedily, until the token `end` or `budget` tokens."""
    steps: list[Step] = []
    token = begin
    for part in parts:
        steps.append({"source": part})
        stream.feed(steps[-1])
        for _ in range(budget):
            steps.append({"thoughts": torch.tensor([token])})
            logits = stream.feed(steps[-1], logits=True)["thoughts"].logits
            assert logits is not None
            token = int(logits[-1].argmax())
            if token == end:
                break
    return steps


def waiting(steps: Sequence[Step]) -> int:
    """Tokens written after the last of the source."""
    last = max(i for i, step in enumerate(steps) if "source" in step)
    return sum(len(step["thoughts"]) for step in steps[last + 1 :])


def check(model: Model, *, count: int = 90, budget: int = 5) -> list[Check]:
    """Unit by unit, against the masked forward; and how long the answer waits, beside what it does
    where all is read before anything is thought."""
    source = random_tokens(model, count)
    source[12::13] = 46  # a full stop every so often
    with streaming_thinker(model, page_size=16, pool_pages=64) as engine:
        stream = engine.open_lanes()
        parts = units(source, [46])
        steps = think(stream, parts, begin=0, end=-1, budget=budget)
        stream.close()
        stream = engine.open_lanes()
        batch = think(stream, [source], begin=0, end=-1, budget=budget * len(parts))
        stream.close()
        checks = lanes_equality(engine, steps, greedy="thoughts")
    name = "waiting tokens, over those of reading it all and then thinking as much"
    return [*checks, Check(name, waiting(steps) / waiting(batch), 0.2)]


PRESET = Preset(
    "streaming_thinker",
    "StreamingThinker, its released loop",
    streaming_thinker,
    check,
    kind="lanes",
)
