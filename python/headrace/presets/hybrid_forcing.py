# SPDX-License-Identifier: Apache-2.0
"""Hybrid Forcing: a sparse window, and what left it in a linear state.

Hybrid Forcing, github.com/leeruibin/hybrid-forcing; its loop was read. Blocks of 3 latent frames, 4
steps; 3 sink frames, a local window of 9; keys at positions relative to the frame that looks; of
the blocks of 64 x 64 tokens the best 20% are read, by mean query times centred mean key; on the
first step of a block, the one about to leave is averaged into a state (sums of rotated key times
value, and of the rectified key); output = sparse attention + linear read-out, projected.

Chosen here: the 9 frames count the block in flight; keys and queries are scored before rotation and
summed over heads, so that one list of pages serves all heads; positions are ranks; folded keys
stand one window back; sums with a count instead of means.

Oracle: for every block a masked forward over all blocks, in which masks of blocks are found by
brute force and the state is a sum over all that left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..memory import Fold, Sink, Window
from ..models import Denoiser
from ..streams import InCache, Ring
from ..streams.ring_chained import chained
from ..streams.ring_fold import FoldedSparse
from ..streams.ring_noise import seeded
from .given import counts, shares
from .proof import Check, Preset
from .ring_loops import BOUND, FOUR, clip, directions, gap, placed, play, small_denoiser, stacked
from .rolling_forcing import warped

__all__ = ["hybrid_forcing"]

LEVELS = warped((1.0, 0.75, 0.5, 0.25))


def hybrid_forcing(
    denoiser: Any,
    *,
    levels: Sequence[float] = LEVELS,
    sinks: int = 1,
    window: int = 3,
    span: int = 3,
    share: float = 0.2,
    block: int = 64,
    condition: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Ring:
    """A ring with one block of `span` frames in flight, for a denoiser with `fold`.

    levels: of noise, one for every step, falling. sinks, window: in blocks of frames, the one in
    flight among the window. share: of the blocks of `block` tokens, what a query reads. condition
    [K]: what frames are conditioned on. seed: of their noise. Options as in `headrace.Ring`, whose
    errors it raises.
    """
    shares("hybrid_forcing", share=share)
    counts("hybrid_forcing", block=block)
    return Ring(
        denoiser,
        levels,
        depth=1,
        memory=Sink(sinks) + Window(window) >> Fold(raw=True, merge="add"),
        cache="clean",
        positions=InCache(),
        span=span,
        mixer=FoldedSparse(share, block),
        noise=seed,
        knobs={} if condition is None else {"condition": condition},
        **options,
    )


def oracle(
    denoiser: Any,
    frames: Tensor,
    *,
    levels: Sequence[float] = FOUR,
    sinks: int = 1,
    window: int = 3,
    span: int = 3,
    share: float = 0.2,
    block: int = 64,
    condition: Tensor | None = None,
    seed: int = 0,
    fold: bool = True,
    afresh: bool = False,
) -> Tensor:
    """Finished blocks of frames [N, P, C]; fold: whether what left is read."""
    c = denoiser.config
    told = torch.zeros(c.condition) if condition is None else condition

    def context(number: int, done: Mapping[int, Tensor]) -> list[tuple[int, int]]:
        near = range(max(0, number - window + 1), number)
        seen = sorted({*range(min(sinks, number)), *near})
        return [(j, len(seen) - rank) for rank, j in enumerate(seen)]

    def mixed(model: Any, here: list[int], attend: Any, sight: Any) -> Callable[..., Tensor]:
        def attending(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.view(len(here), c.tokens, *x.shape[1:]) for x in (q, k, v))
            k, v = (x.repeat_interleave(c.heads // c.kv_heads, 2) for x in (k, v))
            out = []
            for a, i in enumerate(here):
                backs = {j: back for j, back in sight[i].items() if j in here} | {i: 0}
                if afresh and i != here[-1]:  # of those that the last one sees, the earlier ones
                    last = sight[here[-1]]
                    backs = {j: last[j] - last[i] for j in last if j <= i}
                out.append(_sparse(model, here, q[a], k, v, backs, (span, share, block)))
                gone = [b for b, j in enumerate(here) if sinks <= j < i and j not in backs]
                if fold and not afresh and gone:
                    read = _folded(model, q[a], k[gone], v[gone], span, window)
                    out[-1] = out[-1] + read @ model.blocks[layer].fold.T
            return torch.cat(out)

        return attending

    return chained(
        denoiser,
        frames,
        seeded(seed, c.tokens, c.channels),
        lambda *_: {"levels": tuple(levels), "condition": told},
        context=context,
        extra=mixed,
        whole=not afresh,
        afresh=afresh,
    )


def recompute(denoiser: Any, frames: Tensor, **options: Any) -> Tensor:
    """The same with what is seen encoded anew, and nothing folded; options as `oracle`."""
    return oracle(denoiser, frames, afresh=True, **options)


def _sparse(
    model: Any,
    here: Sequence[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backs: Mapping[int, int],
    told: tuple[int, float, int],
) -> Tensor:
    """[P, H, D]: softmax over the best blocks of the frames at `backs`; k and v [N, P, H, D]."""
    span, share, block = told
    tokens, offset = len(q), torch.arange(len(q)) * span // len(q)
    order = sorted(backs)
    at = [here.index(j) for j in order]
    places = [offset - span * backs[j] for j in order]
    turns = zip(at, places, strict=True)
    keys = torch.cat([placed(k[b], place, model.inv_freq) for b, place in turns])
    values = v[at].flatten(0, 1)
    means = k[at].flatten(0, 1).view(-1, block, *k.shape[2:]).mean(1)
    asked = q.view(-1, block, *q.shape[1:]).mean(1)
    score = torch.einsum("nhd,ehd->ne", asked, means - means.mean(0))
    keep = max(1, int(share * len(means) + 0.5))
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask.scatter_(1, score.topk(keep, 1).indices, True)
    mask = mask.repeat_interleave(block, 0).repeat_interleave(block, 1)
    logits = torch.einsum("thd,shd->hts", placed(q, offset, model.inv_freq), keys)
    logits = (logits * q.shape[2] ** -0.5).masked_fill(~mask, -torch.inf)
    return torch.einsum("hts,shd->thd", logits.softmax(-1), values).reshape(tokens, *q.shape[1:])


def _folded(model: Any, q: Tensor, k: Tensor, v: Tensor, span: int, window: int) -> Tensor:
    """[P, H, D] read from keys and values [N, P, H, D] of the frames that left."""
    offset = torch.arange(len(q)) * span // len(q)
    keys = torch.stack([placed(x, offset, model.inv_freq) for x in k])
    state = torch.einsum("nphd,nphe->hde", keys, v)
    norm = k.relu().sum((0, 1))
    asked = placed(q, offset + span * window, model.inv_freq)
    below = (q.relu() * norm).sum(-1, keepdim=True) + k.shape[0] * k.shape[1] * 1e-6
    return torch.einsum("phd,hde->phe", asked, state) / below


def check(denoiser: Any, *, block: int = 16) -> list[Check]:
    """Equality, sparse and not; every block that leaves is folded once; the state acts."""
    frames, checks = clip(denoiser, 7), []
    told: dict[str, Any] = {"condition": directions(denoiser), "block": block}
    for share in (0.2, 1.0):
        want = oracle(denoiser, frames, share=share, **told)
        for exact in (True, False):
            with hybrid_forcing(denoiser, share=share, exact=exact, **told) as ring:
                worst = gap(stacked(play(ring, frames)), want)
                mixer: Any = ring.mixer
                held, most = ring.pool.live_pages, ring.most_pages
            kind = "exact mode" if exact else "torch's products"
            name = f"share {share}, {kind}: max |value - oracle| over max |oracle|"
            checks.append(Check(name, worst, BOUND))
        density = mixer.read / mixer.shown
        checks.append(Check(f"share {share}: blocks read of those seen", density, share + 0.05))
    left = len(frames) - 1 - 1 - 2  # all but the last, a sink, and two of the window
    checks.append(Check("blocks folded beside those that left", abs(mixer.folds - left), 0))
    checks.append(Check("pages in use after all frames, of those planned", held, most))
    other = gap(oracle(denoiser, frames, share=1.0, fold=False, **told), want)
    checks.append(Check("what the state changes, 1e-2 over it", 1e-2 / other, 1.0))
    return checks


def small_folder() -> Denoiser:
    """A random denoiser of blocks [48, 4] that reads folded states."""
    return small_denoiser(tokens=48, fold=True)


PRESET = Preset(
    "hybrid_forcing",
    "Hybrid Forcing; github.com/leeruibin/hybrid-forcing",
    hybrid_forcing,
    check,
    small_folder,
    oracle,
    recompute,
    kind="ring",
)
