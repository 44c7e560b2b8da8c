# SPDX-License-Identifier: Apache-2.0
"""MotionStream: video chunk by chunk along drawn motion, at the same cost for ever.

Shin et al., MotionStream (2025), arXiv 2511.01266; its paper's overview was read, there is no code.
A causal few-step student makes chunks of 3 latent frames; a chunk sees itself, the first chunk,
clean, at all times, and a short window of the newest chunks; keys are rotated by their rank in the
cache, so that no position grows. Every chunk brings the motion it is to follow.

Chosen here: three steps, a window of one finished chunk; the motion of a chunk is what its tokens
are conditioned on; its clean pass shares the model call of the next chunk's first step.

Oracle: a masked forward over all chunks that one depends on, through every layer, without a cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Sink, Window
from ..streams import InCache, Ring
from ..streams.ring_chained import chained
from ..streams.ring_noise import seeded
from .given import counts
from .proof import Check, Preset
from .ring_loops import BOUND, Loop, clip, equality, gap, small_denoiser
from .rolling_forcing import warped

__all__ = ["motion_stream"]

LEVELS = warped((1.0, 2 / 3, 1 / 3))


def loop(levels: Sequence[float] = LEVELS, sinks: int = 1, window: int = 1, chunk: int = 3) -> Loop:
    """One chunk of `chunk` frames in flight behind the first `sinks` and the newest `window`."""
    memory = Sink(sinks) + Window(window + 1)  # a window counts the one that looks
    return Loop(levels, 1, memory=memory, positions=InCache(), span=chunk)


def motion_stream(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    sinks: int = 1,
    window: int = 1,
    chunk: int = 3,
    **options: Any,
) -> Ring:
    """A ring with one chunk in flight; a chunk's motion is its `condition`, [K] or [P, K].

    levels: of noise, one for every step, falling. sinks, window: finished chunks that are seen,
    first and newest. chunk: latent frames of one, positions in time that it takes. Options as in
    `headrace.Ring`, whose errors it raises; beside them condition [K] or [P, K], what frames are
    conditioned on, and seed, of their noise.
    """
    counts("motion_stream", least=0, window=window)
    return loop(levels, sinks, window, chunk).ring(denoiser, **options)


def motion(denoiser: Any, number: int) -> Tensor:
    """Motion [P, K] for a chunk, of its own for every token."""
    c, made = denoiser.config, torch.Generator().manual_seed(1000 + number)
    return torch.randn(c.tokens, c.condition, generator=made)


def check(denoiser: Any, *, chunks: int = 1667) -> list[Check]:
    """Equality over a first stretch, and at the end of 5,000 frames; work and pages throughout."""
    frames = clip(denoiser, 9)

    def drawn(number: int, step: int = 0) -> Mapping[str, Any]:
        return {"condition": motion(denoiser, number)}

    want = loop().oracle(denoiser, frames, own=drawn)

    def opened(**options: Any) -> Ring:
        return motion_stream(denoiser, **options)

    checks = equality(opened, frames, want, own=drawn)
    return checks + _long(denoiser, chunks)


def _long(denoiser: Any, chunks: int) -> list[Check]:
    """A long run: rows and pages of every chunk, and the last one against its oracle."""
    held: set[tuple[int, int]] = set()
    done: dict[int, Tensor] = {}
    still = torch.zeros(denoiser.config.tokens, denoiser.config.channels)
    with motion_stream(denoiser, exact=False) as ring:
        for number in range(chunks):
            ring.tick(still, condition=motion(denoiser, number))
            for out in ring.drain():
                done[out.number] = out.frame
                if out.number > 9:
                    del done[out.number - 9]
            if number > 2:
                held.add((ring.pool.live_pages, ring.calls - len(LEVELS) * number))
    c, last = denoiser.config, chunks - 1

    def context(number: int, before: Mapping[int, Tensor]) -> Iterable[tuple[int, int]]:
        return [(j, back) for j, back in ((number - 1, 1), (0, min(number, 2))) if j in before]

    got = done.pop(last)
    want = chained(
        denoiser,
        {last: still},
        seeded(0, c.tokens, c.channels),
        lambda number, step: {"levels": LEVELS, "condition": motion(denoiser, number)},
        context=context,
        span=3,
        history=done,
    )
    name = f"chunk {last}, frame {3 * last}: max |value - oracle| over max |oracle|"
    constant = "pages and calls of a chunk: values they took, from the fourth on"
    return [Check(name, gap(got, want[0]), BOUND), Check(constant, len(held), 1)]


LOOP = loop()
PRESET = Preset(
    "motion_stream",
    "Shin et al., 2025; arXiv 2511.01266",
    motion_stream,
    check,
    small_denoiser,
    LOOP.oracle,
    LOOP.recompute,
    kind="ring",
)
