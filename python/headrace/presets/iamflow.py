# SPDX-License-Identifier: Apache-2.0
"""IAMFlow: a story whose memory is kept by who is in it.

Liu et al., IAMFlow (2026), arXiv 2605.18733; abstract and overview were read. A language model
finds the entities of every prompt and gives each an id of its own; the memory holds frames by these
ids; where the prompt changes, the frames of those who are in it are attended to, whoever is not
stays in memory untouched; a vision model confirms who is to be seen.

Chosen here: chunks of 3 latent frames, four steps; the ids come with the chunk, from whatever finds
them; the newest two chunks of every id, once they left the window of the newest three, are its
entry; what is seen stands at its rank.

Oracle: a masked forward over all chunks that one depends on, with entries found by brute force.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..streams import Ring
from ..streams.ring import Finished
from ..streams.ring_chained import chained
from ..streams.ring_noise import seeded
from ..streams.ring_recall import Done, Recall
from .given import counts
from .proof import Check, Preset
from .ring_loops import BOUND, FOUR, clip, directions, gap, small_denoiser, stacked
from .rolling_forcing import warped

__all__ = ["ByIdentity", "iamflow"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))


class ByIdentity(Recall):
    """The newest `local` chunks, and of those before them the newest `each` of every id in the
    label, a set of ids. Of no more than `most` ids is anything kept."""

    def __init__(self, local: int = 3, each: int = 2, most: int = 16) -> None:
        self.local, self.each = local, each
        self.most = self.resident = local + 1 + most * each

    def context(
        self, number: int, done: Mapping[int, Done], label: Any
    ) -> Sequence[tuple[int, int]]:
        near = [j for j in sorted(done) if j >= number - self.local]
        old = {j: d for j, d in done.items() if j < number - self.local}
        of = {j for who in label or () for j in self._entry(old, who)}
        seen = sorted(of) + near
        return [(j, len(seen) - rank) for rank, j in enumerate(seen)]

    def drops(self, done: Mapping[int, Done]) -> Iterable[int]:
        near = max(done) + 1 - self.local
        old = {j: d for j, d in done.items() if j < near}
        ids = {who for d in old.values() for who in d.label or ()}
        stay = {j for who in ids for j in self._entry(old, who)}
        out = set(old) - stay
        return sorted(out | set(sorted(stay)[: max(0, len(done) - len(out) - self.most)]))

    def _entry(self, done: Mapping[int, Done], who: object) -> list[int]:
        return sorted(j for j, d in done.items() if who in (d.label or ()))[-self.each :]


def iamflow(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    local: int = 3,
    each: int = 2,
    most: int = 16,
    chunk: int = 3,
    seed: int = 0,
    **options: Any,
) -> Ring:
    """A ring with one chunk in flight: `tick(chunk, condition=prompt, label={ids in it})`.

    levels: of noise, one for every step, falling. local, each, most: newest chunks, chunks of every
    id before them, and ids that are kept, as in `ByIdentity`. chunk: latent frames of one. seed: of
    the noise. Options as in `headrace.Ring`, whose errors it raises. ValueError or TypeError where
    local, each or most is no such number.
    """
    counts("iamflow", local=local, most=most)
    counts("iamflow", least=0, each=each)
    rule = ByIdentity(local, each, most)
    return Ring(denoiser, levels, depth=1, recall=rule, span=chunk, noise=seed, **options)


def oracle(
    denoiser: Any,
    frames: Tensor,
    labels: Sequence[set[str]],
    prompts: Sequence[Tensor],
    *,
    levels: Sequence[float] = FOUR,
    local: int = 3,
    each: int = 2,
    chunk: int = 3,
    seed: int = 0,
    afresh: bool = False,
) -> Tensor:
    """Finished chunks [N, P, C], each with the ids in it and its prompt [K]."""

    def context(number: int, done: Mapping[int, Tensor]) -> list[tuple[int, int]]:
        seen = {j for j in range(number) if number - j <= local}
        for who in labels[number]:
            had = [j for j in range(number - local) if who in labels[j]]
            seen |= set(had[-each:])
        return [(j, sum(i >= j for i in seen)) for j in seen]

    c = denoiser.config
    return chained(
        denoiser,
        frames,
        seeded(seed, c.tokens, c.channels),
        lambda number, step: {"levels": tuple(levels), "condition": prompts[number]},
        context=context,
        span=chunk,
        afresh=afresh,
    )


def recompute(denoiser: Any, *inputs: Any, **options: Any) -> Tensor:
    """The same with what is seen encoded anew; arguments as `oracle`."""
    return oracle(denoiser, *inputs, afresh=True, **options)


def story(denoiser: Any) -> tuple[list[set[str]], list[Tensor]]:
    """Who is in each of 14 chunks, and its prompt: three prompts, two switches and a return."""
    cast = [{"ann", "bob"}] * 5 + [{"cat"}] * 4 + [{"bob", "cat"}] * 2 + [{"ann"}] * 3
    return cast, [directions(denoiser, len(min(who)) + 10 * len(who)) for who in cast]


def check(denoiser: Any) -> list[Check]:
    """Equality over prompt switches, which move nothing and write one chunk as ever."""
    frames, (labels, prompts) = clip(denoiser, 14), story(denoiser)
    want, checks = oracle(denoiser, frames, labels, prompts), []
    for exact in (True, False):
        done: list[Finished] = []
        written: dict[bool, set[int]] = {True: set(), False: set()}
        with iamflow(denoiser, exact=exact) as ring:
            for number, frame in enumerate(frames):
                before = ring.pool.written_bytes
                done += ring.tick(frame, condition=prompts[number], label=labels[number])
                seen = [j for j, _ in ring.flying[0].sees or ()]
                done += ring.drain()
                switch = labels[number] != labels[max(0, number - 1)]
                if number:
                    written[switch].add(ring.pool.written_bytes - before)
            moved = ring.moved_bytes
        kind = "exact mode" if exact else "torch's products"
        name = f"{kind}: max |value - oracle| over max |oracle|"
        checks.append(Check(name, gap(stacked(done), want), BOUND))
    once = len(written[True] | written[False])
    checks.append(Check("K/V bytes of a chunk, at a switch or not: values they took", once, 1))
    checks.append(Check("K/V bytes moved at switches", moved, 0))
    old = [j for j in seen if j < 10]
    checks.append(
        Check(
            "ann's return, last seen ten chunks ago: chunks of hers beside 2",
            abs(len([j for j in old if "ann" in labels[j]]) - 2),
            0,
        )
    )
    return checks


PRESET = Preset(
    "iamflow",
    "Liu et al., 2026; arXiv 2605.18733",
    iamflow,
    check,
    small_denoiser,
    oracle,
    recompute,
    kind="ring",
)
