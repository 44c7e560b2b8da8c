# SPDX-License-Identifier: Apache-2.0
"""Streams of one engine that differ in everything: preset, lanes, adapter and phase.

What each of them is fed depends on its number and on the tick alone, so that it can be run beside
others and by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters import AdapterBank
from ..memory import Archive, Keep, Region, Sink, Window
from ..streams import Absolute, Engine, InCache, Lane, Lanes, PerLane, Stream, wrap
from ..streams.engine import Model
from ..streams.positions import Positions
from .gpe import LANES as GPE
from .mint import random_adapter
from .salmonn_omni import KINDS as DUPLEX_KINDS
from .salmonn_omni import NAMES as DUPLEX_NAMES
from .stream_uni import LANES as STREAM_UNI
from .streaming_thinker import LANES as THINKER

ADAPTERS, RECALL = 6, 5
ALL = Window(None)
ONE = ""  # the lane of a stream that has none


@dataclass(frozen=True)
class Kind:
    """What a stream is opened with; None is the engine's own."""

    name: str
    memory: Region | None = None
    positions: Positions | None = None
    lanes: Sequence[Lane] = ()


def _all(lanes: Sequence[Lane], memory: Region) -> tuple[Lane, ...]:
    return tuple(Lane(one.name, one.reads, one.kind, memory) for one in lanes)


DUPLEX = [
    Lane(name, [other for other in DUPLEX_NAMES if other != name], kind)
    for name, kind in zip(DUPLEX_NAMES, DUPLEX_KINDS, strict=True)
]
WATCHING = [
    Lane("frames", memory=Sink(2) + Window(40)),
    Lane("thoughts", ("frames",), "latent", Window(12)),
    Lane("answer", ("frames", "thoughts"), "out", ALL),
]
KINDS = (
    Kind("rekv"),
    Kind("streaming_llm", Sink(4) + Window(28), InCache()),
    Kind("gpe", lanes=_all(GPE, ALL), positions=PerLane({"target": 0})),
    Kind("everything", ALL, Absolute()),
    Kind("tays", lanes=WATCHING, positions=PerLane({"answer": 10_000})),
    Kind("salmonn_omni", lanes=_all(DUPLEX, Sink(2) + Window(30)), positions=PerLane()),
    Kind("streaming_thinker", lanes=_all(THINKER, ALL), positions=PerLane()),
    Kind("sir_llm", Sink(4) + Keep("surprisal", 20) + Window(12), InCache()),
    Kind("stream_uni", lanes=_all(STREAM_UNI, Window(24)), positions=PerLane()),
)


def engine(
    model: Model, *, pages: int = 640, memory: Region | None = None, **options: Any
) -> Engine:
    """An engine for them; without a memory, its own streams archive what their window evicts, and
    recall it.
    """
    bank = AdapterBank.of(model, "base", slots=ADAPTERS + 2)
    for seed in range(ADAPTERS):
        bank.load_tensors(*random_adapter(bank, seed), name=f"adapter {seed}")
    if memory is None:
        memory = Sink(4) + Window(40) >> Archive("bounds", pages=24)
    return wrap(
        model, memory=memory, positions=InCache(), adapters=bank, page_size=16, pool_pages=pages,
        **options,
    )  # fmt: skip


class Member:
    """One of the streams, by its number."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.number, self.kind = number, KINDS[number % len(KINDS)]
        self.begins = number % 3
        adapter = number % (ADAPTERS + 1)
        of: Mapping[str, Any] = {"adapter": f"adapter {adapter}" if adapter < ADAPTERS else None}
        kind = self.kind
        self.stream: Stream | Lanes
        if kind.lanes:
            assert isinstance(kind.positions, PerLane)
            self.stream = engine.open_lanes(lanes=kind.lanes, positions=kind.positions, **of)
        else:
            self.stream = engine.open(memory=kind.memory, positions=kind.positions, **of)
        self._vocab = engine.vocab

    def before(self, tick: int) -> None:
        """What it does beside reading: one that archives recalls, one that looks looks."""
        if isinstance(self.stream, Lanes):
            if self.kind.name == "streaming_thinker" and tick % 4 == 2:
                self.stream.look("thoughts")
        elif self.kind.memory is None and tick == RECALL + self.number % 2:
            self.stream.recall(self._tokens(tick, 0, 5), top=2)

    def feeds(self, tick: int) -> dict[str, Tensor]:
        """Tokens by lane: a first chunk, then a few at a time or one, by lane; nothing at times."""
        lanes = list(self.stream) if isinstance(self.stream, Lanes) else [ONE]
        made = {}
        for place, lane in enumerate(lanes):
            at = tick - self.begins - 2 * (place > 0)
            count = 20 + 7 * (self.number % 9) if at == 0 else 1
            if place == 0 and at % 3 == 2:
                count = 4 + self.number % 5
            if at >= 0 and (at + self.number) % 7 != 6:
                made[lane] = self._tokens(tick, place, count)
        return made

    def lane(self, name: str) -> Stream:
        return self.stream[name] if isinstance(self.stream, Lanes) else self.stream

    def _tokens(self, tick: int, place: int, count: int) -> Tensor:
        draw = torch.Generator().manual_seed(1000 * self.number + 10 * tick + place)
        return torch.randint(self._vocab, (count,), generator=draw)


def step(engine: Engine, members: Sequence[Member], tick: int) -> dict[tuple[int, str], Tensor]:
    """One step of all of them; logits [n, V] by number and lane."""
    batch = {}
    for member in members:
        member.before(tick)
        for lane, tokens in member.feeds(tick).items():
            batch[member.lane(lane)] = (member.number, lane, tokens)
    if not batch:
        return {}
    reports = engine.step({stream: x for stream, (*_, x) in batch.items()}, logits=True)
    made = {}
    for stream, (number, lane, _) in batch.items():
        logits = reports[stream].logits
        assert logits is not None
        made[number, lane] = logits
    return made
