# SPDX-License-Identifier: Apache-2.0
"""Streaming Diffusion Policy: a plan of actions with rising noise, one step per observation.

Høeg et al., Streaming Diffusion Policy (2024), arXiv 2406.04806; known here from its abstract. The
policy holds a trajectory whose first action is nearly clean and whose last is noise; every
observation costs one step over all of them, after which the first is carried out and a new one of
noise joins at the end.

Chosen here: one action per step and ten of them; levels even in the angle of a cosine schedule,
stepped as an ODE; every step is conditioned on the newest observation; the buffer is empty at first
and an action comes out from the tenth observation on.

Oracle: for every observation a masked forward over the actions in the buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import Denoiser
from ..streams import Diffusion, Ring
from .given import counts
from .proof import Check, Preset
from .ring_loops import BOUND, Loop, gap, small_denoiser

__all__ = ["StreamingDiffusionPolicy", "streaming_diffusion_policy"]


def loop(actions: int = 10) -> Loop:
    """`actions` in the buffer, each at a level of its own."""
    levels = tuple(math.cos(math.pi / 2 * (i + 1) / (actions + 1)) for i in range(actions))
    acts = {"condition": "tick"}
    return Loop(levels, together=True, solver=Diffusion(), acts=acts, knobs={"renoise": 0.0})


class StreamingDiffusionPolicy:
    """`act(observation)` gives an action once the buffer is full. ring: the buffer."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._blank = torch.zeros(ring.shape, device=ring.device)

    def act(self, observation: Tensor) -> Tensor | None:
        """The action [P, C] to carry out after an observation [K], None before the first."""
        self.ring.set(condition=observation)
        done = self.ring.tick(self._blank)
        return done[0].frame if done else None

    def close(self) -> None:
        """Gives its memory back."""
        self.ring.close()


def streaming_diffusion_policy(
    denoiser: Any, *, actions: int = 10, **options: Any
) -> StreamingDiffusionPolicy:
    """The policy over a denoiser whose frame is one action; `act(observation)`.

    actions: in the buffer, each at a level of its own. Options as in `headrace.Ring`, whose errors
    it raises. ValueError or TypeError where actions is no whole number from 1 on.
    """
    counts("streaming_diffusion_policy", actions=actions)
    return StreamingDiffusionPolicy(loop(actions).ring(denoiser, **options))


def oracle(denoiser: Any, observations: Sequence[Tensor], actions: int = 10) -> Tensor:
    """The actions [N - actions + 1, P, C] for N observations [K]."""
    c, count = denoiser.config, len(observations) - actions + 1
    blank = torch.zeros(count + actions - 1, c.tokens, c.channels)
    last = len(observations) - 1

    def own(number: int, step: int) -> dict[str, Any]:
        return {"condition": observations[min(number + step, last)]}

    return loop(actions).oracle(denoiser, blank, own=own)[:count]


def check(denoiser: Any) -> list[Check]:
    """Equality; one call and one action per observation; the newest observation counts."""
    c = denoiser.config
    seen = list(torch.randn(24, c.condition, generator=torch.Generator().manual_seed(3)))
    want, checks = oracle(denoiser, seen), []
    for exact in (True, False):
        made = streaming_diffusion_policy(denoiser, exact=exact)
        acted = [made.act(o) for o in seen]
        calls, rows = made.ring.calls, made.ring.rows
        made.close()
        got = torch.stack([a for a in acted if a is not None])
        kind = "exact mode" if exact else "torch's products"
        name = f"{kind}: max |value - oracle| over max |oracle|"
        checks.append(Check(name, gap(got, want), BOUND))
    checks.append(Check("model calls beside one per observation", abs(calls - len(seen)), 0))
    checks.append(Check("model rows of an observation beside 10", abs(rows - 10), 0))
    silent = sum(a is None for a in acted)
    checks.append(Check("observations before the first action beside 9", abs(silent - 9), 0))
    turned = [*seen[:15], -seen[15], *seen[16:]]
    made = streaming_diffusion_policy(denoiser)
    other = [made.act(o) for o in turned]
    made.close()
    with_it = zip(acted, other, strict=True)
    far = [i for i, (a, b) in enumerate(with_it) if a is not None and gap(b, a) > 1e-3]  # type: ignore[arg-type]
    checks.append(Check("observation 15: first action that it changes", abs(far[0] - 15), 0))
    return checks


def small_policy() -> Denoiser:
    """A random denoiser of actions of two numbers."""
    return small_denoiser(tokens=1, channels=2, condition=6)


PRESET = Preset(
    "streaming_diffusion_policy",
    "Høeg et al., 2024; arXiv 2406.04806",
    streaming_diffusion_policy,
    check,
    small_policy,
    oracle,
    oracle,  # nothing is cached that could be encoded anew
    kind="ring",
)
