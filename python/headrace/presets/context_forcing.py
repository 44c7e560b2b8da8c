# SPDX-License-Identifier: Apache-2.0
"""Context Forcing: a slow memory of the frames that were new, beside a fast one of the newest.

Chen et al., Context Forcing (2026), arXiv 2602.06028; abstract and the description of its plugin
for Scope (junhyr/scope-context-forcing) were read. 3 sink frames, 12 slow ones, 6 fast ones; a
frame that leaves the fast memory goes to the slow one where the cosine of its keys with those of
the frame before it is below 0.95; the slow memory is first in, first out; every frame seen has its
rank for a position, so that none grows.

Chosen here: a frame of the ring is one latent frame; the cosine is that of mean keys, averaged over
layers, taken when a frame is written, clean; four steps.

Oracle: a masked forward over all frames that one depends on, keys and cosines among it, the three
memories walked frame by frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import Denoiser
from ..streams import Ring
from ..streams.ring_chained import chained
from ..streams.ring_noise import seeded
from ..streams.ring_recall import Done, Recall
from .given import counts, numbers
from .proof import Check, Preset
from .ring_loops import BOUND, FOUR, clip, gap, small_denoiser
from .rolling_forcing import warped

__all__ = ["SlowFast", "context_forcing"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))


class SlowFast(Recall):
    """The first `sinks`, the last `slow` that were new, and the newest `fast` frames.

    below: cosine with the frame before it under which a frame is new.
    """

    def __init__(self, sinks: int = 3, slow: int = 12, fast: int = 6, below: float = 0.95) -> None:
        self.sinks, self.slow, self.fast, self.below = sinks, slow, fast, below
        self.most = self.resident = sinks + slow + fast + 1

    def context(
        self, number: int, done: Mapping[int, Done], label: Any
    ) -> Sequence[tuple[int, int]]:
        near = number - self.fast
        slow = [j for j in sorted(done) if self.sinks <= j < near and done[j].note[1]]
        seen = [j for j in sorted(done) if j < self.sinks or j >= near or j in slow[-self.slow :]]
        return [(j, len(seen) - rank) for rank, j in enumerate(seen)]

    def note(self, number: int, keys: Tensor, done: Mapping[int, Done]) -> tuple[Tensor, bool]:
        """Its keys, and whether it is new."""
        last = done[number - 1].note if number - 1 in done else None
        new = last is None or float(F.cosine_similarity(keys, last[0], dim=1).mean()) < self.below
        return keys, new

    def drops(self, done: Mapping[int, Done]) -> Iterable[int]:
        old = [j for j in sorted(done) if self.sinks <= j < max(done) + 1 - self.fast]
        new = [j for j in old if done[j].note[1]]
        return set(old) - set(new[-self.slow :])


def context_forcing(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    sinks: int = 3,
    slow: int = 12,
    fast: int = 6,
    below: float = 0.95,
    condition: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Ring:
    """A ring with one frame in flight behind the three memories.

    levels: of noise, one for every step, falling. sinks, slow, fast, below: frames of the three
    memories, and the cosine under which a frame is new, as in `SlowFast`. condition [K]: what
    frames are conditioned on. seed: of their noise. Options as in `headrace.Ring`, whose errors it
    raises. ValueError or TypeError where a memory is no number of frames.
    """
    numbers("context_forcing", least=-1, below=below)
    counts("context_forcing", least=0, sinks=sinks, slow=slow, fast=fast)
    rule = SlowFast(sinks, slow, fast, below)
    knobs = {} if condition is None else {"condition": condition}
    return Ring(denoiser, levels, depth=1, recall=rule, noise=seed, knobs=knobs, **options)


def oracle(
    denoiser: Any,
    frames: Tensor,
    *,
    levels: Sequence[float] = FOUR,
    sinks: int = 3,
    slow: int = 12,
    fast: int = 6,
    below: float = 0.95,
    condition: Tensor | None = None,
    seed: int = 0,
    afresh: bool = False,
    spans: list[int] | None = None,
) -> Tensor:
    """Finished frames [N, P, C]; spans: how far back each one sees past the sinks is added."""
    c = denoiser.config
    told = torch.zeros(c.condition) if condition is None else condition
    keys: dict[int, dict[int, Tensor]] = {}

    def watch(model: Any, here: list[int], attend: Callable[..., Tensor], sight: Any) -> Any:
        def attending(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            means = k.view(len(here), c.tokens, -1).mean(1)
            for number, mean in list(zip(here, means, strict=True))[:-1]:  # the last is not clean
                keys.setdefault(number, {})[layer] = mean
            return attend(layer, q, k, v)

        return attending

    def cosine(j: int) -> float:
        pairs = ((keys[j][layer], keys[j - 1][layer]) for layer in range(c.layers))
        return sum(float(a @ b / (a.norm() * b.norm())) for a, b in pairs) / c.layers

    def context(number: int, done: Mapping[int, Tensor]) -> list[tuple[int, int]]:
        first = list(range(min(sinks, number)))
        near = list(range(max(len(first), number - fast), number))
        new = [j for j in range(sinks, number - fast) if cosine(j) < below][-slow:]
        seen = first + new + near
        if spans is not None:
            spans.append(number - (new + near or [number])[0])
        return [(j, len(seen) - rank) for rank, j in enumerate(seen)]

    return chained(
        denoiser,
        frames,
        seeded(seed, c.tokens, c.channels),
        lambda *_: {"levels": tuple(levels), "condition": told},
        context=context,
        extra=watch,
        afresh=afresh,
    )


def recompute(denoiser: Any, frames: Tensor, **options: Any) -> Tensor:
    """The same with what is seen encoded anew; options as `oracle`."""
    return oracle(denoiser, frames, afresh=True, **options)


def check(denoiser: Any) -> list[Check]:
    """Equality, the span of context measured, and a memory of one size."""
    still = clip(denoiser, 24)[:1].expand(24, -1, -1).clone()
    still[6], still[12:] = still[6].flip(0), still[12:].flip(1)  # a glimpse, and another scene
    told: dict[str, Any] = {"levels": (0.25, 0.1), "sinks": 2, "slow": 3, "fast": 4}
    spans: list[int] = []
    want, checks = oracle(denoiser, still, spans=spans, **told), []
    for exact in (True, False):
        done, back, held = [], [], 0
        with context_forcing(denoiser, exact=exact, **told) as ring:
            for number, frame in enumerate(still):
                ring.tick(frame)
                seen = [j for j, _ in ring.flying[0].sees or () if j >= 2]
                back.append(number - min(seen, default=number))
                done += [f.frame for f in ring.drain()]
                held = max(held, ring.pool.live_pages)
            most = ring.most_pages
        kind = "exact mode" if exact else "torch's products"
        worst = gap(torch.stack(done), want)
        checks.append(Check(f"{kind}: max |value - oracle| over max |oracle|", worst, BOUND))
        wrong = sum(a != b for a, b in zip(back, spans, strict=True))
        checks.append(Check(f"{kind}: frames with another span than the oracle's", wrong, 0))
    checks.append(Check("fast memory over the longest span of context", 4 / max(spans), 0.5))
    checks.append(Check("pages in the pool, of those planned", held, most))
    return checks


def small_one() -> Denoiser:
    """A random denoiser of frames [8, 4]."""
    return small_denoiser(tokens=8)


PRESET = Preset(
    "context_forcing",
    "Chen et al., 2026; arXiv 2602.06028",
    context_forcing,
    check,
    small_one,
    oracle,
    recompute,
    kind="ring",
)
