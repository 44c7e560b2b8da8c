# SPDX-License-Identifier: Apache-2.0
"""RAIN: a long ring of groups of frames, in which frames of every noise level see one another.

Shu et al., RAIN (2024), arXiv 2412.19489; abstract and overview were read. A stream batch as in
StreamDiffusion, but a slot holds p frames at one level, and the temporal attention of its few added
blocks runs over all frames in flight, whatever their level; poses come with the frames, and a
reference image says who is animated; few-step consistency sampling.

Chosen here: 4 levels, p = 4; attention over all tokens in flight; a frame's pose is what its tokens
are conditioned on, to which the reference is added; the levels are those of Stable Diffusion at
timesteps 999, 759, 499 and 259, of which the first counts as noise alone.

Oracle: for every call a masked forward over the frames in flight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..streams import Diffusion, Ring
from .proof import Check, Preset
from .ring_loops import (
    BOUND,
    Loop,
    clip,
    directions,
    equality,
    gap,
    play,
    rows_of,
    small_denoiser,
    stacked,
)
from .stream_diffusion import levels_of

__all__ = ["rain"]

TIMESTEPS = (999, 759, 499, 259)


def loop(group: int = 4) -> Loop:
    """Groups of `group` frames in flight, one at every level."""
    return Loop(levels_of(TIMESTEPS), together=True, span=group, solver=Diffusion())


def rain(denoiser: Any, *, group: int = 4, reference: Tensor | None = None, **options: Any) -> Ring:
    """A ring of groups of `group` frames: `tick(group, condition=pose + reference)`, [P, K].

    group: frames at one level, positions in time that they take. reference [K]: what groups without
    a pose are conditioned on. Options as in `headrace.Ring`, whose errors it raises.
    """
    return loop(group).ring(denoiser, condition=reference, **options)


def poses(denoiser: Any, number: int) -> Tensor:
    """Poses [P, K] of the frames of a group, behind a reference."""
    c, made = denoiser.config, torch.Generator().manual_seed(2000 + number)
    return torch.randn(c.tokens, c.condition, generator=made) + directions(denoiser)


def check(denoiser: Any) -> list[Check]:
    """Equality; one group in and one out per call; groups of all levels read one another."""
    groups = clip(denoiser, 9)

    def own(number: int, step: int = 0) -> Mapping[str, Any]:
        return {"condition": poses(denoiser, number)}

    def opened(**options: Any) -> Ring:
        return rain(denoiser, **options)

    want = loop().oracle(denoiser, groups, own=own)
    checks = equality(opened, groups, want, solo=False, own=own)
    rows, calls = rows_of(opened, groups)
    off = abs(rows - len(TIMESTEPS)) + abs(calls - 1)
    checks.append(Check(f"model rows beside {len(TIMESTEPS)}, in one call", off, 0))
    other = groups.clone()
    other[5] += 1.0  # noise hides none of it: a small part of a frame is left at the first level
    with opened() as ring, opened() as second:
        got, far = (stacked(play(r, x, own)) for r, x in ((ring, groups), (second, other)))
    blind = [i for i in range(2, 9) if gap(far[i], got[i]) < BOUND]
    checks.append(Check("groups in flight with one that do not see it", len(blind), 0))
    early = int((far[:2] != got[:2]).sum())
    checks.append(Check("groups done before it: values that differ", early, 0))
    return checks


LOOP = loop()
PRESET = Preset(
    "rain",
    "Shu et al., 2024; arXiv 2412.19489",
    rain,
    check,
    small_denoiser,
    LOOP.oracle,
    LOOP.recompute,  # nothing is cached that could be encoded anew
    kind="ring",
)
