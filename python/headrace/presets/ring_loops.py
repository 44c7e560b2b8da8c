# SPDX-License-Identifier: Apache-2.0
"""What presets of rings share: frames to play, and the checks that every ring passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..memory import Region
from ..models import Denoiser, DenoiserConfig
from ..streams.positions import Positions
from ..streams.ring import Finished, Ring
from ..streams.ring_noise import seeded
from ..streams.ring_oracle import Knobs, rolled, unrolled
from ..streams.ring_recompute import recompute_rolled, recompute_unrolled
from ..streams.ring_solver import Solver
from .proof import Check

BOUND = 1e-4
"""Largest difference of two frames that counts as rounding, over the largest value in them."""

FOUR = (1.0, 15 / 16, 5 / 6, 5 / 8)
"""For oracles: levels 1, 3/4, 1/2 and 1/4 after a time shift of 5, 5 l / (1 + 4 l)."""


@dataclass(frozen=True)
class Loop:
    """A ring as data, so that what runs and what it must equal are told the same.

    Fields as `headrace.Ring` takes them; every: ticks between two frames.
    """

    levels: Sequence[float]
    depth: int | None = None
    memory: Region | None = None
    cache: str = "clean"
    together: bool = False
    positions: Positions | None = None
    span: int = 1
    solver: Solver | None = None
    every: int = 1
    acts: Mapping[str, str] | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def ring(
        self, denoiser: Any, *, condition: Tensor | None = None, seed: int = 0, **options: Any
    ) -> Ring:
        """The ring; options as in `headrace.Ring`."""
        told = {**self.knobs, **({} if condition is None else {"condition": condition})}
        told.update(options.pop("knobs", None) or {})
        own = ("levels", "every", "knobs")
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        return Ring(denoiser, self.levels, noise=seed, knobs=told, **{**given, **options})

    def oracle(
        self,
        denoiser: Any,
        frames: Tensor,
        *,
        condition: Tensor | None = None,
        seed: int = 0,
        own: Knobs | None = None,
        **options: Any,
    ) -> Tensor:
        """What becomes of frames [N, P, C], by dense forwards over the whole history.

        own(number, step) gives knobs that are not the same throughout.
        """
        parts = (unrolled, rolled)
        return self._run(parts, denoiser, frames, condition, seed, own, options)

    def recompute(
        self,
        denoiser: Any,
        frames: Tensor,
        *,
        condition: Tensor | None = None,
        seed: int = 0,
        own: Knobs | None = None,
        **options: Any,
    ) -> Tensor:
        """The same with what is alive encoded anew for every frame, instead of cached."""
        parts = (recompute_unrolled, recompute_rolled)
        return self._run(parts, denoiser, frames, condition, seed, own, options)

    def _run(
        self,
        parts: tuple[Callable[..., Tensor], Callable[..., Tensor]],
        denoiser: Any,
        frames: Tensor,
        condition: Tensor | None,
        seed: int,
        own: Knobs | None,
        options: dict[str, Any],
    ) -> Tensor:
        c = denoiser.config
        told = torch.zeros(c.condition) if condition is None else condition
        same = {**self.knobs, "levels": tuple(self.levels), "condition": told}

        def knobs(number: int, step: int) -> Mapping[str, Any]:
            return {**same, **(own(number, step) if own else {})}

        names = ["memory", "positions", "span", "solver"]
        by_tick = self.cache == "clean" or self.together
        if by_tick:
            names += ["together", "every"]
            options["depth"] = len(self.levels) if self.depth is None else self.depth
        options = {**{name: getattr(self, name) for name in names}, **options}
        noise = seeded(seed, c.tokens, c.channels)
        return parts[by_tick](denoiser, frames, noise, knobs, **options)


def small_denoiser(**config: Any) -> Denoiser:
    """A random denoiser of frames [16, 4], unless `config` says otherwise."""
    return Denoiser(DenoiserConfig(**config), seed=1).eval()


def clip(denoiser: Any, count: int, seed: int = 0) -> Tensor:
    """Frames [count, P, C] that drift and jump, as a video does."""
    c, made = denoiser.config, torch.Generator().manual_seed(seed)
    still = torch.randn(1, c.tokens, c.channels, generator=made)
    drift = torch.randn(count, c.tokens, c.channels, generator=made).cumsum(0) * 0.1
    cut = (torch.arange(count) >= 2 * count // 3).view(-1, 1, 1)
    return torch.where(cut, still.flip(1) - drift, still + drift)


def directions(denoiser: Any, seed: int = 7) -> Tensor:
    """Something to be conditioned on, [K]."""
    return torch.randn(denoiser.config.condition, generator=torch.Generator().manual_seed(seed))


def play(
    ring: Ring,
    frames: Iterable[Tensor],
    own: Callable[[int], Mapping[str, Any]] | None = None,
    every: int = 1,
) -> list[Finished]:
    """What comes out when a frame goes in with every `every`-th tick that has a slot, and none is
    left.

    own(number) gives the knobs that a frame brings along.
    """
    done: list[Finished] = []
    for number, frame in enumerate(frames):
        while not ring.ready or ring.now % every:
            done += ring.tick()
        done += ring.tick(frame, **(own(number) if own else {}))
    return done + ring.drain()


def stacked(done: Iterable[Finished]) -> Tensor:
    """Frames [N, P, C] in the order in which they came in."""
    return torch.stack([f.frame for f in sorted(done, key=lambda f: f.number)])


def placed(x: Tensor, at: Tensor, inv_freq: Tensor) -> Tensor:
    """fp64 x [T, H, D] rotated by positions int64 [T], for oracles: a feature of the first half and
    its partner in the second are a complex number, times exp(i position frequency)."""
    pairs = torch.complex(*x.double().chunk(2, -1))
    angle = at.double()[:, None, None] * inv_freq.double()
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], -1)


def gap(got: Tensor, want: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((got - want).abs().max() / want.abs().max())


def equality(
    opened: Callable[..., Ring],
    frames: Tensor,
    want: Tensor,
    *,
    solo: bool = True,
    own: Callable[[int], Mapping[str, Any]] | None = None,
    every: int = 1,
) -> list[Check]:
    """That a ring equals its oracle, and with `solo` has the bits of one frame after another.

    opened(exact=..., depth=...) gives the ring.
    """
    with opened() as ring:
        got = stacked(play(ring, frames, own, every))
        most, pages, room = ring.depth, ring.pool.live_pages, ring.most_pages
    with opened(exact=False) as ring:
        loose = stacked(play(ring, frames, own, every))
    name = "max |value - oracle| over max |oracle|"
    checks = [
        Check(f"exact mode: {name}", gap(got, want), BOUND),
        Check(f"torch's products: {name}", gap(loose, want), BOUND),
        Check("pages in use after all frames, of those planned", pages, room),
    ]
    if solo and most > 1:
        with opened(depth=1) as ring:
            alone = stacked(play(ring, frames, own))
        differ = int((alone != got).sum())
        name = f"exact mode, alone or {most} in flight: values that differ"
        checks.append(Check(name, differ, 0))
    return checks


def rows_of(opened: Callable[..., Ring], frames: Tensor, every: int = 1) -> tuple[int, int]:
    """Model rows and model calls of a tick with all slots taken."""
    with opened() as ring:
        for frame in frames[: ring.depth + 1]:
            for due in range(every):
                calls = ring.calls
                ring.tick(None if due else frame)
        return ring.rows, ring.calls - calls
