# SPDX-License-Identifier: Apache-2.0
"""Small rings, frames for them, and the schedule that they must equal."""

from __future__ import annotations

import torch

from headrace import Ring
from headrace.models import Denoiser, DenoiserConfig
from headrace.streams.ring_noise import seeded

LEVELS = (0.9, 0.7, 0.5, 0.3)
DENOISER = Denoiser(DenoiserConfig(), seed=1).eval()
NOISE = seeded(0, 16, 4)


def clip(count: int = 8, seed: int = 0) -> torch.Tensor:
    """Frames [count, 16, 4]."""
    return torch.randn(count, 16, 4, generator=torch.Generator().manual_seed(seed))


def told(seed: int = 0) -> torch.Tensor:
    """Something to be conditioned on, [8]."""
    return torch.randn(8, generator=torch.Generator().manual_seed(100 + seed))


def ring(**options) -> Ring:
    options.setdefault("levels", LEVELS)
    return Ring(options.pop("denoiser", DENOISER), options.pop("levels"), **options)


def played(made: Ring, frames, turns=None) -> list:
    """What comes out when a frame goes in with every tick that has a slot.

    turns: {tick: knobs to turn just before it}.
    """
    done, turns = [], turns or {}
    waiting = list(frames)
    while waiting or made.flying:
        if made.now in turns:
            made.set(**turns[made.now])
        done += made.tick(waiting.pop(0) if waiting and made.ready else None)
    return done


def stacked(done) -> torch.Tensor:
    return torch.stack([f.frame for f in sorted(done, key=lambda f: f.number)])


def constant(**knobs):
    """The same knobs for every frame and step, as the oracle asks for them."""
    knobs.setdefault("levels", LEVELS)
    return lambda number, step: knobs
