# SPDX-License-Identifier: Apache-2.0
"""Rolling Forcing: a window of blocks at rising noise, denoised together, one out per model call.

Liu et al., Rolling Forcing (2025), github.com/TencentARC/RollingForcing; its loop was read in forks
that carry it. Blocks of 3 latent frames, as many blocks in flight as there are steps (5: 1000, 800,
600, 400, 200 of 1000, warped by a shift of 5); all tokens in flight see one another and the clean
cache; every window finishes its oldest block, which is then run once more at level 0 to write its
keys and values. The first block stays as a sink. Of 21 frames that a query may see, 15 are in
flight: here one sink block and the newest finished block are the other 6, at their ranks (sinks
keep their distance to the window).

Chosen here: the clean pass shares the model call of the next window, in which the block's keys are
written, layer by layer, before they are read: one call where the released loop makes two.

Oracle: for every window a masked forward over the whole history and the window, without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..memory import Sink, Window
from ..streams import InCache, Ring
from .given import counts
from .proof import Check, Preset
from .ring_loops import Loop, clip, directions, equality, rows_of, small_denoiser

__all__ = ["rolling_forcing", "warped"]


def warped(levels: Sequence[float], shift: float = 5.0) -> tuple[float, ...]:
    """shift l / (1 + (shift - 1) l) of every level, the time shift of flow models."""
    return tuple(shift * level / (1 + (shift - 1) * level) for level in levels)


LEVELS = warped((1.0, 0.8, 0.6, 0.4, 0.2))


def loop(levels: Sequence[float] = LEVELS, sinks: int = 1, clean: int = 1, block: int = 3) -> Loop:
    """Blocks of `block` frames; sinks and clean are finished blocks that are seen."""
    return Loop(
        levels,
        memory=Sink(sinks) + Window(clean + 1),  # a window counts the one that looks
        together=True,
        positions=InCache(),
        span=block,
    )


def rolling_forcing(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    sinks: int = 1,
    clean: int = 1,
    block: int = 3,
    **options: Any,
) -> Ring:
    """A ring of blocks of `block` frames; sinks and clean are finished blocks that are seen.

    Feed it blocks of any content: at level 1 they are noise alone. levels: of noise, one for every
    step, falling. Options as in `headrace.Ring`, whose errors it raises; beside them condition [K]
    or [P, K], what frames are conditioned on, and seed, of their noise.
    """
    counts("rolling_forcing", least=0, clean=clean)
    return loop(levels, sinks, clean, block).ring(denoiser, **options)


def check(denoiser: Any) -> list[Check]:
    """Equality with the windows written out; rows, calls, and one clean write per window."""
    blocks = clip(denoiser, 11)
    told: dict[str, Any] = {"condition": directions(denoiser)}

    def opened(**options: Any) -> Ring:
        return rolling_forcing(denoiser, **told, **options)

    checks = equality(opened, blocks, loop().oracle(denoiser, blocks, **told), solo=False)
    rows, calls = rows_of(opened, blocks)
    n = len(LEVELS)
    checks.append(Check(f"model rows of a window beside {n} and a clean one", abs(rows - n - 1), 0))
    checks.append(Check("model calls of a window beside one", abs(calls - 1), 0))
    with opened() as ring:
        live = []
        for block in blocks:
            ring.tick(block)
            live.append(ring.pool.live_pages)
        pages = denoiser.config.layers * (1 + 2)  # a sink, the newest, the one about to leave
        checks.append(Check(f"pages held beside {pages}", abs(live[-1] - pages), 0))
    return checks


PRESET = Preset(
    "rolling_forcing",
    "Liu et al., 2025; github.com/TencentARC/RollingForcing",
    rolling_forcing,
    check,
    small_denoiser,
    loop().oracle,
    loop().recompute,
    kind="ring",
)
