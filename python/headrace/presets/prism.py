# SPDX-License-Identifier: Apache-2.0
"""PRISM: motion in segments, each token with a noise level of its own, those that are known at 0.

PRISM, streaming human motion generation; known here from its abstract alone: a denoiser with a
level per token, in which clean tokens are the condition, so that one model does text to motion,
pose to motion and segments one after the other.

Chosen here: segments of 16 poses; the last 4 of a segment are the first of the next, clean; four
steps; each pose is a position in time.

Oracle: the segments one after the other in fp64; and, given what they begin with, one long forward
over all of them under a mask, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import bad_value
from ..models import Denoiser
from ..streams import Ring
from ..streams.ring_noise import seeded
from ..streams.ring_oracle import rolled
from .given import counts
from .proof import Check, Preset
from .ring_loops import BOUND, directions, gap, small_denoiser

__all__ = ["Prism", "prism"]

LEVELS = (1.0, 0.75, 0.5, 0.25)


class Prism:
    """Motion segment by segment: `segment()` gives the next. ring: one segment in flight."""

    def __init__(self, ring: Ring, overlap: int) -> None:
        self.ring, self.overlap = ring, overlap
        self._known = torch.zeros(ring.shape[0], dtype=torch.bool)
        self._begin = torch.zeros(ring.shape)

    def segment(self, known: Tensor | None = None, poses: Tensor | None = None) -> Tensor:
        """A segment [P, C], which begins as the last one ended.

        known bool [P], poses [P, C]: further poses that it must have, e.g. at its end.
        """
        given, begin = self._known, self._begin
        if known is not None and poses is not None:
            given, begin = given | known, torch.where((known & ~given)[:, None], poses, begin)
        self.ring.tick(begin, given=given)
        made = self.ring.drain()[0].frame
        k = self.overlap
        self._known = torch.arange(len(made)) < k
        self._begin = torch.cat([made[len(made) - k :], torch.zeros_like(made[k:])])
        return made

    def close(self) -> None:
        """Gives its memory back."""
        self.ring.close()


def prism(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    overlap: int = 4,
    condition: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Prism:
    """Segments of the frame of a denoiser, whose tokens are poses.

    levels: of noise, one for every step, falling. overlap: poses that two segments share. condition
    [K]: what they are conditioned on. seed: of the noise. Options as in `headrace.Ring`, whose
    errors it raises. ValueError where overlap is not below the poses of a segment.
    """
    counts("prism", least=0, overlap=overlap)
    tokens = denoiser.config.tokens
    if not 0 <= overlap < tokens:
        raise bad_value("prism", "overlap", f"0 to {tokens - 1}", overlap)
    knobs = {} if condition is None else {"condition": condition}
    options = {"span": tokens, "noise": seed, "knobs": knobs, **options}
    return Prism(Ring(denoiser, levels, depth=1, **options), overlap)


def oracle(
    denoiser: Any,
    segments: int,
    *,
    levels: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    overlap: int = 4,
    condition: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Segments [N, P, C] one after the other."""
    c, noise = denoiser.config, seeded(seed, denoiser.config.tokens, denoiser.config.channels)
    knobs = {"levels": tuple(levels), "condition": torch.zeros(c.condition)}
    if condition is not None:
        knobs["condition"] = condition
    given = torch.zeros(c.tokens, dtype=torch.bool)
    made: list[Tensor] = []
    begin = torch.zeros(1, c.tokens, c.channels, dtype=torch.float64)
    for i in range(segments):
        made += rolled(
            denoiser,
            begin,
            lambda _, steps, i=i: noise(i, steps),  # type: ignore[misc]
            lambda *_: knobs,
            depth=1,
            span=c.tokens,
            given=given,
        )
        begin = torch.zeros_like(begin)
        begin[0, :overlap] = made[-1][c.tokens - overlap :]
        given = torch.arange(c.tokens) < overlap
    return torch.stack(made)


def _at_once(denoiser: Any, made: Tensor, overlap: int, condition: Tensor) -> Tensor:
    """All segments but the first in one long masked run, each begun as the one before it ended in
    made [N, P, C]."""
    c, noise = denoiser.config, seeded(0, denoiser.config.tokens, denoiser.config.channels)
    made = made.double()
    begin = torch.zeros_like(made[1:])
    begin[:, :overlap] = made[:-1, c.tokens - overlap :]
    return rolled(
        denoiser,
        begin,
        lambda number, steps: noise(number + 1, steps),
        lambda *_: {"levels": (1.0, 0.75, 0.5, 0.25), "condition": condition},
        depth=len(begin),
        span=c.tokens,
        given=torch.arange(c.tokens) < overlap,
    )


def check(denoiser: Any) -> list[Check]:
    """Chained segments equal their oracle and one long run; what is given stays, to the bit."""
    condition, count = directions(denoiser), 5
    want, checks = oracle(denoiser, count, condition=condition), []
    name = "max |value - oracle| over max |oracle|"
    for exact in (True, False):
        made = prism(denoiser, condition=condition, exact=exact)
        got = torch.stack([made.segment() for _ in range(count)])
        made.close()
        kind = "exact mode" if exact else "torch's products"
        checks.append(Check(f"{kind}: {name}", gap(got, want), BOUND))
        seams = int((got[:-1, -4:] != got[1:, :4]).sum())
        checks.append(Check(f"{kind}: values that differ at the seams", seams, 0))
        long = _at_once(denoiser, got, 4, condition)
        claim = f"{kind}: chained segments: max |value - one long masked run| over its max"
        checks.append(Check(claim, gap(got[1:], long), BOUND))
    made = prism(denoiser, condition=condition)
    known, poses = torch.zeros(denoiser.config.tokens).bool(), torch.ones(made.ring.shape)
    known[-1] = True
    ended = made.segment(known, poses)[-1]
    made.close()
    checks.append(Check("a pose that is asked for: values that differ", int((ended != 1).sum()), 0))
    return checks


def small_poser() -> Denoiser:
    """A random denoiser of 16 poses of 6 numbers."""
    return small_denoiser(channels=6)


PRESET = Preset(
    "prism",
    "PRISM, streaming human motion, abstract",
    prism,
    check,
    small_poser,
    oracle,
    oracle,  # nothing is cached that could be encoded anew
    kind="ring",
)
