# SPDX-License-Identifier: Apache-2.0
"""Rings: frames in flight at different solver steps, beside one frame after another."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...memory import Sink, Window
from ...models import Denoiser, DenoiserConfig
from ...presets.stream_diffusion import stream_diffusion
from ...streams import Ring
from ..case import rms_error
from .turns import Loop, Round, Side, Size

LARGE: dict[str, Any] = {
    "tokens": 64,
    "layers": 4,
    "width": 128,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 32,
    "hidden": 512,
}
STEPS = (700, 519, 359, 99)
FRAMES = 16  # of a turn: most of them go in and out within it


def frames_of(ring: Ring, count: int = 4) -> Callable[[], int]:
    """Takes `count` frames through a ring, as many in flight as it has slots."""
    frame = torch.randn(ring.shape, generator=torch.Generator().manual_seed(0))

    def run() -> int:
        done = 0
        while done < count:
            done += len(ring.tick(frame if ring.ready else None))
        return done

    while not run():
        pass
    return run


class Flow:
    """Frames through a ring that is kept as full as it goes, from one turn to the next."""

    def __init__(self, ring: Ring, frames: Iterator[torch.Tensor]) -> None:
        self.ring, self.frames = ring, frames
        self._began: deque[float] = deque()  # of those in flight

    def take(self, count: int) -> tuple[Round, list[torch.Tensor]]:
        """Until so many more are done, and what came of them. Lag is from in to out; a frame that
        was in flight before has none, for it waited while others had their turn."""
        lags: list[float] = []
        made: list[torch.Tensor] = []
        start = time.perf_counter()
        while len(made) < count:
            frame = next(self.frames, None) if self.ring.ready else None
            if frame is not None:
                self._began.append(time.perf_counter())
            for finished in self.ring.tick(frame):
                made.append(finished.frame)
                began = self._began.popleft()
                if began >= start:
                    lags.append(time.perf_counter() - began)
        return Round(time.perf_counter() - start, len(made), lags), made


def _ring(denoiser: Denoiser, depth: int) -> Ring:
    told: dict[str, Any] = {"timesteps": STEPS, "guidance": "none", "depth": depth}
    return stream_diffusion(denoiser, memory=Sink(1) + Window(3), **told).ring


def sizes(quick: bool) -> Iterator[Size]:
    """Frames in flight."""
    torch.manual_seed(1)
    denoiser = Denoiser(DenoiserConfig() if quick else DenoiserConfig(**LARGE), seed=1).eval()
    for depth in (1, 4) if quick else (1, 2, 4):
        yield _size(denoiser, depth)


def _size(denoiser: Denoiser, depth: int) -> Size:
    rings = {"ring": _ring(denoiser, depth), "one frame after another": _ring(denoiser, 1)}
    shape = rings["ring"].shape

    def endless(seed: int) -> Iterator[torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn(shape, generator=draw)

    flows = {name: Flow(ring, endless(1)) for name, ring in rings.items()}

    def error() -> float:
        """Of new rings, so that what they remember is the same."""
        with _ring(denoiser, depth) as a, _ring(denoiser, 1) as b:
            made, want = (torch.stack(Flow(ring, endless(2)).take(8)[1][:8]) for ring in (a, b))
        return rms_error(made, want)

    def close() -> None:
        for ring in rings.values():
            ring.close()

    def side(name: str) -> Side:
        pool = rings[name].pool
        return Side(name, lambda: flows[name].take(FRAMES)[0], lambda: pool.resident_bytes)

    return Size(depth, [side(name) for name in rings], error, 1e-5, close=close)


LOOP = Loop(
    "rings",
    "frames of 64 tokens through four solver steps of a random denoiser",
    "frames in flight",
    "frames/s",
    "frames that went through the steps one after another",
    sizes,
)
