# SPDX-License-Identifier: Apache-2.0
"""How a step's time grows with the length of a stream and with the number of streams."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from ... import models
from ...memory import Window
from ...streams import Stream, wrap
from ..loops.streams import MEMORY, PAGES, Fleet
from .curve import Point, Told, Work

CHUNK, DENSE = 512, 16384


def length(quick: bool, told: Told) -> Iterator[Point]:
    """Single tokens late in a stream and early in another, in turns; and with nothing evicted."""
    model = models.load("bytes-stream")
    ends = [4**k * 1000 for k in range(3 if quick else 7)]
    draw = torch.Generator().manual_seed(0)
    single = 16 if quick else 100

    def grow(stream: Stream, read: int, end: int) -> None:
        for at in range(read, end, CHUNK):
            if at % (32 * CHUNK) == 0:
                told(f"length: {at:,} of {end:,} tokens")
            stream.feed(torch.randint(256, (min(CHUNK, end - at),), generator=draw))

    with (
        wrap(model, memory=MEMORY, pool_pages=64, chunk=CHUNK) as engine,
        wrap(model, memory=Window(None), pool_pages=DENSE // 64 + 16, chunk=CHUNK) as dense,
    ):
        old, whole, read = engine.open(), dense.open(), 0
        for end in ends:
            young = engine.open()
            young.feed(torch.randint(256, (300,), generator=draw))
            grow(old, read, end)
            sides = {"sinks and a window": old, "the same, a stream just begun": young}
            if end <= DENSE:
                grow(whole, read, end)
                sides["nothing evicted"] = whole
            read = end
            for i in range(single):
                for name in reversed(sides) if i % 2 else sides:
                    token = torch.randint(256, (1,), generator=draw)
                    began = time.perf_counter()
                    sides[name].feed(token)
                    yield name, end, [time.perf_counter() - began]
            young.close()


def streams(quick: bool, told: Told) -> Iterator[Point]:
    """A token of every stream in one step; all numbers of streams take turns."""
    model = models.load("bytes-stream")
    counts = (1, 4, 16) if quick else (1, 4, 16, 64, 256, 1024)
    fleets = {}
    for count in counts:
        told(f"streams: reading {count} prompts")
        engine = wrap(model, memory=MEMORY, pool_pages=PAGES * count + 32 * 8)
        fleets[count] = Fleet(engine, [engine.open() for _ in range(count)])
    for turn in range(4 if quick else 12):
        for count, fleet in fleets.items():
            told(f"streams: {count}, turn {turn}")
            for _ in range(max(1, 16 // count)):
                tokens = fleet.next()
                began = time.perf_counter()
                fleet.engine.step(tokens)
                if turn:  # the first warms up
                    yield "one step for all", count, [time.perf_counter() - began]
    for fleet in fleets.values():
        fleet.engine.close()


LENGTH = Work(
    "length", "A token late in a stream of the packaged model", "tokens of the stream",
    "a token", length,
)  # fmt: skip
STREAMS = Work(
    "streams", "A token of every stream of the packaged model", "streams", "a step", streams, 1.0
)
