# SPDX-License-Identifier: Apache-2.0
"""Video: patches that stay are neither computed nor kept, beside all of them; over what moves."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ...models import VISION, Vision, load_vision
from ...streams.watch import Watcher, pixel_gate, token_dropper
from ..case import rms_error
from .turns import Loop, Round, Side, Size

HEIGHT, WIDTH, NOISE = 176, 320, 1.0


def watcher(model: Vision, height: int, width: int, threshold: float | None) -> Watcher:
    """With a gate and a dropper; without a threshold everything is computed and kept."""
    if threshold is None:
        return Watcher(model, height, width)
    gate = pixel_gate(model, threshold)
    return Watcher(model, height, width, gate=gate, dropper=token_dropper())


class Scene:
    """A still ground with grain, whose first rows, `percent` of the picture, go from dark to light
    and back, every frame another picture; uint8 [H, W, 3]."""

    def __init__(self, percent: int, height: int = HEIGHT, width: int = WIDTH) -> None:
        self._draw = torch.Generator().manual_seed(0)
        coarse = torch.randint(30, 220, (height // 16, width // 16, 3), generator=self._draw)
        self.ground = coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)
        self.rows = height * percent // 100
        self._light = False

    def next(self) -> Tensor:
        frame = self.ground.float()
        frame += torch.empty(frame.shape).normal_(0, NOISE, generator=self._draw)
        moving, self._light = frame[: self.rows], not self._light
        high, wide = (-(-n // 16) for n in moving.shape[:2])
        coarse = torch.randint(0, 80, (high, wide, 3), generator=self._draw) + 160 * self._light
        fine = coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)
        moving.copy_(fine[: len(moving), : moving.shape[1]])
        return frame.round().clamp(0, 255).byte()


def sizes(quick: bool) -> Iterator[Size]:
    """Per cent of the picture that moves."""
    model = load_vision(VISION)
    for percent in (10,) if quick else (5, 10, 25, 50, 100):
        yield _size(model, percent, 2 if quick else 8)


def _size(model: Vision, percent: int, count: int) -> Size:
    scene, threshold = Scene(percent), model.config.threshold
    eyes = {
        "changed patches": watcher(model, HEIGHT, WIDTH, threshold),
        "every patch": watcher(model, HEIGHT, WIDTH, None),
    }
    share = [0.0, 0]

    def error() -> float:
        """Of what is foretold and of the cut, where everything moves: nothing may be left out."""
        moving, worst = Scene(100), 0.0
        gated = Watcher(model, HEIGHT, WIDTH, gate=pixel_gate(model, threshold))
        with gated, watcher(model, HEIGHT, WIDTH, None) as whole:
            for frame in (moving.next() for _ in range(3)):
                a, b = gated.feed(frame), whole.feed(frame)
                assert a.next_thumbs is not None
                assert b.next_thumbs is not None
                gaps = rms_error(a.next_thumbs, b.next_thumbs), abs(a.cut - b.cut)
                worst = max(worst, *gaps, float((a.next_codes != b.next_codes).float().mean()))
        return worst

    def side(name: str) -> Side:
        one = eyes[name]

        def run() -> Round:
            lags = []
            for _ in range(count):
                frame = scene.next()
                began = time.perf_counter()
                seen = one.feed(frame)
                lags.append(time.perf_counter() - began)
                if name == "changed patches":
                    share[0] += float(seen.changed.float().mean())
                    share[1] += 1
            return Round(sum(lags), count, lags)

        return Side(name, run, lambda: one.resident_bytes)

    def close() -> None:
        for one in eyes.values():
            one.close()

    def notes() -> dict[str, float]:
        return {"patches computed": share[0] / max(share[1], 1)}

    return Size(percent, [side(name) for name in eyes], error, 1e-4, notes, close)


LOOP = Loop(
    "video",
    f"frames of {WIDTH}x{HEIGHT} through the packaged vision model, grain on what stays",
    "per cent that moves",
    "frames/s",
    "what a model that computes every patch says, where everything moves",
    sizes,
)
