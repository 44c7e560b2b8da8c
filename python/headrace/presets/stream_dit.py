# SPDX-License-Identifier: Apache-2.0
"""StreamDiT: a moving buffer of frames in chunks, each some micro-steps less noisy than the next.

Kodaira et al., StreamDiT (2025), arXiv 2507.03745; abstract and overview were read. A buffer of
frames is partitioned into chunks, each at a level of its own; all frames see one another; after the
micro-steps of a level the first chunk is clean and leaves, and one of noise comes in behind. The
distilled model needs as many calls as the buffer has chunks: one micro-step.

Chosen here: 8 chunks of 2 latent frames; attention over the whole buffer, where the released
network has windows in it; the stream begins with the buffer empty and fills it chunk by chunk.

Oracle: the schedule unrolled, for every call a masked forward over the frames in the buffer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ..streams import Ring
from .given import counts
from .proof import Check, Preset
from .ring_loops import Loop, clip, directions, equality, rows_of, small_denoiser

__all__ = ["stream_dit"]


def loop(chunks: int = 8, micro: int = 1, frames: int = 2) -> Loop:
    """`chunks` of `frames` frames in the buffer, each `micro` steps at its place in it."""
    steps = chunks * micro
    levels = tuple(1 - i / steps for i in range(steps))
    return Loop(levels, chunks, together=True, span=frames, every=micro)


def stream_dit(
    denoiser: Any, *, chunks: int = 8, micro: int = 1, frames: int = 2, **options: Any
) -> Ring:
    """A ring of `chunks` chunks; give it one with every `micro`-th tick, and it gives one out. Of
    any content: at level 1 they are noise alone.

    micro: steps of a chunk at its place. frames: latent frames of a chunk. Options as in
    `headrace.Ring`, whose errors it raises; beside them condition [K] or [P, K], what frames are
    conditioned on, and seed, of their noise.
    """
    counts("stream_dit", chunks=chunks, micro=micro, frames=frames)
    return loop(chunks, micro, frames).ring(denoiser, **options)


def check(denoiser: Any) -> list[Check]:
    """Equality for partitions of one and of several micro-steps; rows, calls, and the pace."""
    told: dict[str, Any] = {"condition": directions(denoiser)}
    checks = []
    for chunks, micro in ((8, 1), (4, 2), (2, 3)):
        name, frames = f"{chunks} chunks, {micro} micro-steps", clip(denoiser, chunks + 3)
        parts: dict[str, Any] = {"chunks": chunks, "micro": micro}

        def opened(parts: dict[str, Any] = parts, **options: Any) -> Ring:
            return stream_dit(denoiser, **parts, **told, **options)

        want = loop(chunks, micro).oracle(denoiser, frames, **told)
        for made in equality(opened, frames, want, solo=False, every=micro):
            checks.append(Check(f"{name}: {made.name}", made.figure, made.bound))
        rows, calls = rows_of(opened, frames, micro)
        off = abs(rows - chunks) + abs(calls - 1)
        checks.append(Check(f"{name}: model rows beside {chunks}, in one call", off, 0))
        with opened() as ring:
            ends = []
            for due in range(micro * len(frames)):
                ends += [f.ended for f in ring.tick(None if due % micro else frames[due // micro])]
        pace = {b - a for a, b in pairwise(ends)}
        checks.append(Check(f"{name}: ticks between chunks beside {micro}", len(pace - {micro}), 0))
    return checks


LOOP = loop()
PRESET = Preset(
    "stream_dit",
    "Kodaira et al., 2025; arXiv 2507.03745",
    stream_dit,
    check,
    small_denoiser,
    LOOP.oracle,
    LOOP.recompute,  # nothing is cached that could be encoded anew
    kind="ring",
)
