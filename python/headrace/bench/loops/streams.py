# SPDX-License-Identifier: Apache-2.0
"""Many streams: a token of each in one step, beside a step for one stream after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import models
from ...memory import Sink, Window
from ...streams import Engine, Stream, wrap
from ..case import rms_error
from .turns import Loop, Round, Side, Size

MEMORY = Sink(4) + Window(252)
PAGES = 8
"""Of 64 tokens, that a stream of that memory may hold while it reads."""


class Fleet:
    """Streams of one engine, their windows full, and the tokens that come in next."""

    def __init__(self, engine: Engine, streams: Sequence[Stream], fill: int = 300) -> None:
        self.engine, self.streams = engine, list(streams)
        self._draw = torch.Generator().manual_seed(0)
        for at in range(0, len(self.streams), 32):
            some = self.streams[at : at + 32]
            engine.step({s: self._tokens(fill) for s in some})

    def _tokens(self, count: int = 1) -> Tensor:
        return torch.randint(256, (count,), generator=self._draw)

    def next(self) -> dict[Stream, Tensor]:
        """A token of each."""
        return {s: self._tokens() for s in self.streams}

    def together(self, **options: Any) -> list[Any]:
        return list(self.engine.step(self.next(), **options).values())

    def in_turn(self, **options: Any) -> list[Any]:
        return [self.engine.step({s: x}, **options)[s] for s, x in self.next().items()]

    def round(self, step: Callable[[], list[Any]], steps: int) -> Round:
        """Tokens that come in all at once; each waits for its own step to end."""
        lags: list[float] = []
        begun = time.perf_counter()
        for _ in range(steps):
            began = time.perf_counter()
            step()
            lags += [time.perf_counter() - began] * len(self.streams)
        return Round(time.perf_counter() - begun, steps * len(self.streams), lags)

    def round_in_turn(self) -> Round:
        lags, began = [], time.perf_counter()
        for stream, token in self.next().items():
            self.engine.step({stream: token})
            lags.append(time.perf_counter() - began)
        return Round(lags[-1], len(lags), lags)


def apart(ours: list[Any], others: list[Any]) -> float:
    """RMS of the difference of two lists of reports, in their logits."""
    a, b = (torch.stack([r.logits[-1] for r in each]) for each in (ours, others))
    return rms_error(a, b)


def sizes(quick: bool) -> Iterator[Size]:
    """Streams."""
    model = models.load("bytes-stream")
    for count in (1, 8) if quick else (1, 4, 16, 64, 256):
        batch, other = (
            Fleet(engine, [engine.open() for _ in range(count)])
            for engine in (_engine(model, count), _engine(model, count))
        )
        yield of_fleets(count, batch, other, max(1, 64 // count))


def _engine(model: Any, count: int) -> Engine:
    return wrap(model, memory=MEMORY, pool_pages=PAGES * count + 32 * 8)


def of_fleets(count: int, batch: Fleet, other: Fleet, steps: int) -> Size:
    """Two fleets that read the same tokens: one together, one stream after the other."""

    def close() -> None:
        batch.engine.close()
        other.engine.close()

    sides = [
        Side("one step", lambda: batch.round(batch.together, steps),
             lambda: batch.engine.resident_bytes),
        Side("one after another", other.round_in_turn, lambda: other.engine.resident_bytes),
    ]  # fmt: skip
    error = lambda: apart(batch.together(logits=True), other.in_turn(logits=True))  # noqa: E731
    return Size(count, sides, error, 0.0, close=close)


LOOP = Loop(
    "streams",
    "a token of every stream of the packaged model in one step",
    "streams",
    "tokens/s",
    "logits of every stream stepped by itself, to the bit",
    sizes,
)
