# SPDX-License-Identifier: Apache-2.0
"""LongLive-RAG: video that looks up what it showed long ago.

LongLive-RAG, a fork of NVlabs/LongLive; its loop was read. A frame sees the first one, the 6
frames of an archive that are most like the newest (cosine of embeddings by a small autoencoder),
and the newest 5: 12 in all with itself. The archive holds what left that window, less the 5 newest
of it; the first frame and those retrieved all stand at the first position, the others behind; four
steps; the archive lies outside the fast memory.

Chosen here: a frame of the ring is one latent frame, where the released loop makes blocks of 3; the
embedding is handed in, and unless it is, it is the frame itself; the first position is as many
before the frame as it sees; what is recalled is decided once for a frame, not for every step.

Oracle: a masked forward over what is assembled, in which the 6 are found by brute force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import Denoiser
from ..streams import Ring
from ..streams.ring_chained import chained
from ..streams.ring_noise import seeded
from ..streams.ring_recall import Done, Recall
from .given import counts
from .proof import Check, Preset
from .ring_loops import BOUND, FOUR, clip, gap, small_denoiser
from .rolling_forcing import warped

__all__ = ["Lookup", "longlive_rag"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))
Embed = Callable[[Tensor], Tensor]
"""A frame [P, C] -> numbers whose cosine says how alike two frames are."""


class Lookup(Recall):
    """The first `sinks`, the `top` of the archive most like the newest, and the newest `local`.

    guard: frames that left the newest last and are not looked up yet. most: frames kept.
    """

    def __init__(
        self,
        embed: Embed,
        sinks: int = 1,
        top: int = 6,
        local: int = 5,
        guard: int = 5,
        most: int = 4096,
    ) -> None:
        self.embed, self.sinks, self.top = embed, sinks, top
        self.local, self.guard, self.most = local, guard, most
        self.resident = sinks + top + local + 1

    def context(
        self, number: int, done: Mapping[int, Done], label: Any
    ) -> Sequence[tuple[int, int]]:
        first = [j for j in range(self.sinks) if j in done]
        near = [j for j in range(number - self.local, number) if j in done and j not in first]
        pool = [j for j in sorted(done) if self.sinks <= j < number - self.local - self.guard]
        found: list[int] = []
        if pool:
            asked = self._of(done[number - 1])
            alike = torch.stack([self._of(done[j]) for j in pool]) @ asked
            order = torch.sort(alike, descending=True, stable=True).indices[: self.top]
            found = [pool[i] for i in order.tolist()]
        count = len(first) + len(found) + len(near)
        return [*((j, count) for j in first + found), *((j, number - j) for j in near)]

    def drops(self, done: Mapping[int, Done]) -> Iterable[int]:
        return sorted(j for j in done if j >= self.sinks)[: max(0, len(done) - self.most)]

    def _of(self, done: Done) -> Tensor:
        return torch.nn.functional.normalize(self.embed(done.frame).flatten().double(), dim=0)


def longlive_rag(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    embed: Embed = lambda frame: frame,
    sinks: int = 1,
    top: int = 6,
    local: int = 5,
    guard: int = 5,
    archive: int = 4096,
    condition: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Ring:
    """A ring with one frame in flight and an archive, of which no more than it can see lies in the
    pool.

    levels: of noise, one for every step, falling. embed: gives what frames are compared by. sinks,
    top, local, guard: first frames, frames looked up, newest frames, and those not looked up yet,
    as in `Lookup`. archive: frames kept. condition [K]: what frames are conditioned on. seed: of
    their noise. Options as in `headrace.Ring`, whose errors it raises. ValueError or TypeError
    where one of the five is no number of frames.
    """
    counts("longlive_rag", least=0, sinks=sinks, top=top, guard=guard)
    counts("longlive_rag", local=local, archive=archive)
    rule = Lookup(embed, sinks, top, local, guard, archive)
    knobs = {} if condition is None else {"condition": condition}
    return Ring(denoiser, levels, depth=1, recall=rule, noise=seed, knobs=knobs, **options)


def oracle(
    denoiser: Any,
    frames: Tensor,
    *,
    levels: Sequence[float] = FOUR,
    embed: Embed = lambda frame: frame,
    sinks: int = 1,
    top: int = 6,
    local: int = 5,
    guard: int = 5,
    condition: Tensor | None = None,
    seed: int = 0,
    afresh: bool = False,
    picks: list[set[int]] | None = None,
) -> Tensor:
    """Finished frames [N, P, C]; picks: what was retrieved for each is added to it."""
    c = denoiser.config
    told = torch.zeros(c.condition) if condition is None else condition

    def context(number: int, done: Mapping[int, Tensor]) -> dict[int, int]:
        likeness = {
            j: float(
                torch.cosine_similarity(
                    embed(done[j]).flatten(), embed(done[number - 1]).flatten(), dim=0
                )
            )
            for j in range(sinks, number - local - guard)
        }
        best = sorted(likeness, key=lambda j: (-likeness[j], j))[:top]
        if picks is not None:
            picks.append(set(best))
        pinned = {*range(min(sinks, number)), *best}
        near = set(range(max(0, number - local), number)) - pinned
        far = dict.fromkeys(pinned, len(pinned | near))
        return far | {j: number - j for j in near}

    return chained(
        denoiser,
        frames,
        seeded(seed, c.tokens, c.channels),
        lambda *_: {"levels": tuple(levels), "condition": told},
        context=lambda number, done: context(number, done).items(),
        afresh=afresh,
    )


def recompute(denoiser: Any, frames: Tensor, **options: Any) -> Tensor:
    """The same with what is assembled encoded anew; options as `oracle`."""
    return oracle(denoiser, frames, afresh=True, **options)


def check(denoiser: Any) -> list[Check]:
    """The brute-force six are picked, the result equals their dense forward, pages stay as many."""
    frames, made = clip(denoiser, 26), torch.Generator().manual_seed(2)
    c = denoiser.config
    into = torch.randn(3, c.tokens * c.channels, generator=made)
    told: dict[str, Any] = {
        "levels": tuple(0.8 * level for level in LEVELS),
        "embed": lambda frame: into.to(frame.dtype) @ frame.flatten(),
    }
    picks: list[set[int]] = []
    want, checks = oracle(denoiser, frames, picks=picks, **told), []
    for exact in (True, False):
        done, found, held = [], [], 0
        with longlive_rag(denoiser, exact=exact, **told) as ring:
            for number, frame in enumerate(frames):
                ring.tick(frame)
                seen = dict(ring.flying[0].sees or ())
                found.append({j for j in seen if 1 <= j < number - 10})
                done += [f.frame for f in ring.drain()]
                held = max(held, ring.pool.live_pages)
            most, moved, page = ring.most_pages, ring.moved_bytes, ring.pool.page_bytes
        kind = "exact mode" if exact else "torch's products"
        worst = gap(torch.stack(done), want)
        checks.append(Check(f"{kind}: max |value - oracle| over max |oracle|", worst, BOUND))
        wrong = sum(a != b for a, b in zip(found, picks, strict=True))
        checks.append(Check(f"{kind}: frames with other picks than by brute force", wrong, 0))
    changes = len({frozenset(p) for p in picks if len(p) == 6})
    checks.append(Check("sets of six, of which there must be several: 1 over", 1 / changes, 0.5))
    checks.append(Check("pages in the pool, of those planned", held, most))
    bound = 26 * 2 * 6 * c.layers * page
    name = "bytes moved between pool and archive, of six frames each way"
    checks += [Check(name, moved, bound), Check("1 if nothing was moved", float(moved == 0), 0)]
    return checks


def small_one() -> Denoiser:
    """A random denoiser of frames [8, 4]."""
    return small_denoiser(tokens=8)


PRESET = Preset(
    "longlive_rag",
    "LongLive-RAG, fork of github.com/NVlabs/LongLive",
    longlive_rag,
    check,
    small_one,
    oracle,
    recompute,
    kind="ring",
)
