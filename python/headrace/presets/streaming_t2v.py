# SPDX-License-Identifier: Apache-2.0
"""StreamingT2V: long video from chunks that remember the one before them and the first frame.

Henschel et al., StreamingT2V (2024), arXiv 2403.14773; known here from its abstract and overview: a
short-term memory of the last frames of the previous chunk, a long-term anchor of the first frame,
and an enhancement of overlapping chunks that are blended at a random frame of every overlap.

Chosen here: chunks of 16 frames that overlap by 8, one chunk of memory and the first chunk, clean,
as the anchor, at their ranks; four steps; the blend picks for every overlap the frame at which the
later chunk takes over, evenly and from a seed, or mixes linearly; it is done once, on finished
chunks, where the paper does it at every step of the enhancement.

Oracle: a masked forward over all chunks, without a cache, and the blend frame by frame.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value
from ..memory import Sink, Window
from ..streams import InCache, Ring
from .given import counts
from .proof import Check, Preset
from .ring_loops import Loop, clip, directions, equality, small_denoiser
from .rolling_forcing import warped

__all__ = ["Blend", "streaming_t2v"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))


def loop(levels: Sequence[float] = LEVELS, memory: int = 1, chunk: int = 16) -> Loop:
    """One chunk in flight behind the first and the newest `memory`."""
    sees = Sink(1) + Window(memory + 1)
    return Loop(levels, 1, memory=sees, positions=InCache(), span=chunk)


def streaming_t2v(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    memory: int = 1,
    chunk: int = 16,
    **options: Any,
) -> Ring:
    """A ring with one chunk in flight; give what it makes to a `Blend`.

    levels: of noise, one for every step, falling. memory: chunks that are seen beside the first.
    chunk: frames of one. Options as in `headrace.Ring`, whose errors it raises; beside them
    condition [K] or [P, K], what frames are conditioned on, and seed, of their noise.
    """
    counts("streaming_t2v", least=0, memory=memory)
    return loop(levels, memory, chunk).ring(denoiser, **options)


class Blend:
    """Chunks that overlap, joined: `add` gives the frames that no later chunk changes.

    overlap: frames that two chunks share. seed: of the frames at which chunks take over; None to
    mix linearly instead.
    """

    def __init__(self, overlap: int = 8, seed: int | None = 0) -> None:
        self.overlap = overlap
        self._random = None if seed is None else random.Random(seed)
        self._held: Tensor | None = None

    def add(self, chunk: Tensor) -> Tensor:
        """Frames that are settled by a chunk [F, ...]. ValueError when it is shorter than two
        overlaps."""
        o = self.overlap
        if len(chunk) < 2 * o:
            raise bad_value("Blend.add", "chunk", f"{2 * o} frames or more", len(chunk))
        begin = chunk[:o]
        if self._held is not None:
            part = (torch.arange(o) + 1) / (o + 1)
            if self._random is not None:
                part = (torch.arange(o) >= self._random.randint(0, o)).float()
            part = part.to(chunk.dtype).view(-1, *[1] * (chunk.dim() - 1))
            begin = torch.where(part == 1, begin, torch.lerp(self._held, begin, part))
        settled = torch.cat([begin, chunk[o : len(chunk) - o]])
        self._held = chunk[len(chunk) - o :]
        return settled

    def end(self) -> Tensor | None:
        """The frames of the last overlap."""
        held, self._held = self._held, None
        return held


def check(denoiser: Any) -> list[Check]:
    """Equality with the chunks written out; seams."""
    chunks, told = clip(denoiser, 8), directions(denoiser)
    want = loop().oracle(denoiser, chunks, condition=told)

    def opened(**options: Any) -> Ring:
        return streaming_t2v(denoiser, condition=told, **options)

    return equality(opened, chunks, want) + _seams(want)


def _seams(made: Tensor) -> list[Check]:
    """Chunks as frames [F, C]: which chunk every frame of the result is from."""
    overlap, size = 4, made.shape[1]
    step, count = size - overlap, made.shape[0]
    blend = Blend(overlap)
    parts = [blend.add(chunk) for chunk in made]
    video = torch.cat([*parts, made[-1, size - overlap :]])
    length = step * count + overlap
    owner = []
    for t, frame in enumerate(video):
        of = [i for i in range(count) if 0 <= t - i * step < size]
        owner.append([i for i in of if torch.equal(made[i, t - i * step], frame)])
    strange = sum(not who for who in owner)
    order = [who[0] for who in owner if who]
    back = sum(b < a or b > a + 1 for a, b in pairwise(order))
    smooth = Blend(overlap, seed=None)
    ramp = torch.zeros(2, size, 1)
    ramp[1] = 1.0
    mixed = torch.cat([smooth.add(chunk) for chunk in ramp]).diff(dim=0).abs().max()
    return [
        Check(f"frames blended beside {length}", abs(len(video) - length), 0),
        Check("blend: frames of no chunk", strange, 0),
        Check("blend: frames out of the order of chunks", back, 0),
        Check("linear blend of chunks that are 1 apart: largest seam", float(mixed), 0.2 + 1e-6),
    ]


LOOP = loop()
PRESET = Preset(
    "streaming_t2v",
    "Henschel et al., 2024; arXiv 2403.14773",
    streaming_t2v,
    check,
    small_denoiser,
    LOOP.oracle,
    LOOP.recompute,
    kind="ring",
)
