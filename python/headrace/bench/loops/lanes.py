# SPDX-License-Identifier: Apache-2.0
"""Reading and writing in one step, beside a step that reads and a step that writes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ... import models
from ...memory import Sink, Window
from ...streams import Lane, wrap
from .streams import apart
from .turns import Loop, Round, Side, Size

LANES = (Lane("source"), Lane("target", reads=("source",), kind="out"))
MEMORY = Sink(4) + Window(252)


class Pairs:
    """Streams of two lanes of one engine, their windows full, that read and write."""

    def __init__(self, model: Any, streams: int, tokens: int = 1, exact: bool = True) -> None:
        pages = 16 * streams + 64
        self.engine = wrap(model, memory=MEMORY, lanes=LANES, pool_pages=2 * pages, exact=exact)
        self.tokens, self._draw = tokens, torch.Generator().manual_seed(0)
        self.opened = [self.engine.open_lanes() for _ in range(streams)]
        self.fed = 0
        self.step(fused=True, many=300)

    def _lane(self, name: str, count: int) -> dict[Any, Tensor]:
        draw = self._draw
        return {s[name]: torch.randint(256, (count,), generator=draw) for s in self.opened}

    def step(self, fused: bool, many: int = 0) -> float:
        """Seconds of reading `tokens` and writing one, for every stream."""
        read, write = self._lane("source", many or self.tokens), self._lane("target", many or 1)
        began = time.perf_counter()
        if fused:
            self.engine.step({**read, **write})
        else:
            self.engine.step(read)
            self.engine.step(write)
        taken = time.perf_counter() - began
        self.fed += sum(map(len, (*read.values(), *write.values())))
        return taken

    def said(self, fused: bool) -> list[Any]:
        """Reports of all lanes. Tokens of one step do not see one another across lanes, so that in
        two steps the lane that reads the other one comes first."""
        read, write = self._lane("source", self.tokens), self._lane("target", 1)
        if fused:
            told = self.engine.step({**read, **write}, logits=True)
        else:
            told = {**self.engine.step(write, logits=True), **self.engine.step(read, logits=True)}
        return [told[lane] for lane in (*read, *write)]

    @property
    def copied(self) -> int:
        """Bytes written to the pool that are not a fed token's own."""
        pool = self.engine.pool
        return pool.written_bytes - self.fed * pool.row_bytes * pool.k.shape[0]


def sizes(quick: bool) -> Iterator[Size]:
    """Streams."""
    model = models.load("bytes-stream")
    for count in (1, 4) if quick else (1, 4, 16, 64):
        yield _size(model, count, max(1, 32 // count))


def _size(model: Any, count: int, steps: int) -> Size:
    pairs = {True: Pairs(model, count), False: Pairs(model, count)}

    def run(fused: bool) -> Round:
        each = [pairs[fused].step(fused) for _ in range(steps)]
        return Round(sum(each), 2 * count * steps, [s for s in each for _ in range(2 * count)])

    def close() -> None:
        for one in pairs.values():
            one.engine.close()

    sides = [
        Side("one step", lambda: run(True), lambda: pairs[True].engine.resident_bytes),
        Side("two steps", lambda: run(False), lambda: pairs[False].engine.resident_bytes),
    ]
    return Size(count, sides, lambda: apart(pairs[True].said(True), pairs[False].said(False)), 0.0,
                close=close)  # fmt: skip


LOOP = Loop(
    "lanes",
    "a token read and a token written by every stream, its lanes in one step",
    "streams",
    "tokens/s",
    "logits of every lane stepped by itself, to the bit",
    sizes,
)
