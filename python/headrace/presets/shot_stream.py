# SPDX-License-Identifier: Apache-2.0
"""ShotStream: a story of shots, each made chunk by chunk behind a few frames of those before it.

Luo et al., ShotStream (2026), arXiv 2603.25746; abstract and overview were read. A global cache
holds sparse frames of earlier shots and a local one those of the current shot; a jump in the rotary
positions at every cut tells them apart; prompts come with the shots; four steps.

Chosen here: chunks of 3 latent frames; at a cut the newest chunk of the shot that ends joins the
global cache, which holds four, the oldest leaving first; until it is full the first chunks of all
join it; the local cache is a window of 6 chunks; a cut jumps 8 chunks.

Oracle: a masked forward over all chunks that one depends on, with the rule of who is seen written
out over shots, without a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..memory import Sink, Window
from ..streams import Ring
from ..streams.ring import Finished
from ..streams.ring_chained import chained
from ..streams.ring_noise import seeded
from .proof import Check, Preset
from .ring_loops import BOUND, FOUR, Loop, clip, directions, gap, small_denoiser, stacked
from .rolling_forcing import warped

__all__ = ["shot_stream"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))
JUMP = 8


def shot_stream(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    kept: int = 4,
    window: int = 6,
    chunk: int = 3,
    **options: Any,
) -> Ring:
    """A ring with one chunk in flight: `tick(frame, condition=prompt)`, and at the first chunk of a
    shot `tick(frame, cut=8, keep=1, condition=prompt)`.

    levels: of noise, one for every step, falling. kept: chunks of earlier shots. window: chunks of
    the current one, the one in flight among them. chunk: latent frames of one. Options as in
    `headrace.Ring`, whose errors it raises; beside them condition [K] or [P, K], what frames are
    conditioned on, and seed, of their noise.
    """
    loop = Loop(levels, 1, memory=Sink(kept) + Window(window), span=chunk)
    return loop.ring(denoiser, **options)


def _context(
    cuts: Sequence[int], kept: int, window: int, keep: int, jump: int
) -> Callable[[int, Mapping[int, Tensor]], Iterable[tuple[int, int]]]:
    """Who is seen: the chunks pinned so far, and the newest of the shot."""

    def shot(number: int) -> int:
        return sum(cut <= number for cut in cuts)

    def context(number: int, done: Mapping[int, Tensor]) -> list[tuple[int, int]]:
        pinned: list[int] = []
        local: list[int] = []
        for j in range(number + 1):
            if j in cuts:
                pinned = [*pinned, *(local[-keep:] if keep else [])][-kept:]
                local = []
            if j < number:
                if len(pinned) < kept:
                    pinned.append(j)
                else:
                    local = [*local, j][-window:]
        local = local[max(0, len(local) - window + 1) :]
        return [(j, number - j + jump * (shot(number) - shot(j))) for j in pinned + local]

    return context


def oracle(
    denoiser: Any,
    frames: Tensor,
    *,
    cuts: Sequence[int] = (),
    prompts: Sequence[Tensor] | None = None,
    levels: Sequence[float] = FOUR,
    kept: int = 4,
    window: int = 6,
    chunk: int = 3,
    keep: int = 1,
    jump: int = 8,
    seed: int = 0,
    afresh: bool = False,
) -> Tensor:
    """Finished chunks [N, P, C]. cuts: numbers of chunks that begin a shot; prompts: of each shot,
    one more than there are cuts."""
    c = denoiser.config

    def knobs(number: int, step: int) -> Mapping[str, Any]:
        told = frames.new_zeros(c.condition)
        if prompts is not None:
            told = prompts[sum(cut <= number for cut in cuts)]
        return {"levels": tuple(levels), "condition": told}

    context = _context(cuts, kept, window, keep, jump)
    noise = seeded(seed, c.tokens, c.channels)
    return chained(denoiser, frames, noise, knobs, context=context, span=chunk, afresh=afresh)


def recompute(denoiser: Any, frames: Tensor, **options: Any) -> Tensor:
    """The same with what is seen encoded anew; options as `oracle`."""
    return oracle(denoiser, frames, afresh=True, **options)


def check(denoiser: Any) -> list[Check]:
    """Equality over three cuts, jumps or none, and that a cut makes the local cache empty."""
    frames, cuts, checks = clip(denoiser, 12), (4, 6, 9), []
    prompts = [directions(denoiser, seed) for seed in range(4)]
    small: dict[str, Any] = {"kept": 2, "window": 3}
    name = "max |value - oracle| over max |oracle|"
    for jump in (JUMP, 0):
        want = oracle(denoiser, frames, cuts=cuts, prompts=prompts, jump=jump, **small)
        for exact in (True, False):
            done: list[Finished] = []
            with shot_stream(denoiser, exact=exact, **small) as ring:
                for number, frame in enumerate(frames):
                    prompt = prompts[sum(cut <= number for cut in cuts)]
                    new: dict[str, Any] = {"cut": jump, "keep": 1} if number in cuts else {}
                    done += ring.tick(frame, condition=prompt, **new)
                    if number == cuts[-1]:
                        held = ring.pool.live_pages
                    done += ring.drain()
            kind = "exact mode" if exact else "torch's products"
            checks.append(Check(f"jump {jump}, {kind}: {name}", gap(stacked(done), want), BOUND))
    two = 2 * denoiser.config.layers
    checks.append(Check(f"pages held after a cut, beside {two}", abs(held - two), 0))
    return checks


PRESET = Preset(
    "shot_stream",
    "Luo et al., 2026; arXiv 2603.25746",
    shot_stream,
    check,
    small_denoiser,
    oracle,
    recompute,
    kind="ring",
)
