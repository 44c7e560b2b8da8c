# SPDX-License-Identifier: Apache-2.0
"""What a recall misses, measured: a few of the blocks left out are looked at.

A bound from summaries must allow for one key among many that points along the query, and no summary
much smaller than the keys can rule that out; so it is often near 1. How far the true mass of blocks
is from n exp(q.mean), on the other hand, varies little from block to block, and a sample tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_value
from .archive import Shelf
from .dial import Masses
from .recall import Asked, _seen_from, _shift

UNIFORM = 0.1
"""Of the draws, the share that goes to all blocks alike: none has a chance of nothing."""
_Z = 1.6449  # 95% of a normal distribution lie below


@dataclass(frozen=True)
class Sampled:
    """Of the softmax of the row that misses most: missed, the share of what is left out, unbiased
    before it is divided by the whole; at_most, its one-sided 95% limit by Student's t over the
    draws. Both say nothing of a block unlike all those drawn: see `Dialled.missed` for proof.
    """

    missed: float
    at_most: float


def sampled(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    m: Masses,
    chosen: np.ndarray,
    reach: int | None = None,
    inv_freq: Tensor | None = None,
    draws: int = 32,
) -> Sampled:
    """What every query misses beside what it sees without the archive and the blocks `chosen`
    (rows of the shelf's index); m: bounds of all, as `recall.bounds` gives them.

    Blocks are drawn, with replacement, in proportion to n exp(q.mean) and fetched: one layer of
    `draws` blocks at most moves. The same blocks are drawn every time. ValueError when the near
    pages are too few.
    """
    if draws < 2:
        raise bad_value("sampled", "draws", "2 or more", draws)
    rest = np.ones(len(shelf.index), bool)
    rest[chosen] = False
    left = torch.from_numpy(np.flatnonzero(rest))
    if not len(left):
        return Sampled(0.0, 0.0)
    weight = torch.softmax(m.low[:, left].double(), 1).mean(0)
    weight = (1 - UNIFORM) * weight + UNIFORM / len(left)
    drawn = torch.multinomial(
        weight, draws, replacement=True, generator=torch.Generator().manual_seed(len(left))
    )
    kinds, which = drawn.unique(return_inverse=True)
    found = _fetched(shelf, layer, asked, left[kinds].numpy(), reach, inv_freq)[:, which]
    held = _fetched(shelf, layer, asked, chosen, reach, inv_freq)
    seen = torch.logsumexp(torch.cat([asked.lse.double().reshape(-1, 1), held], 1), 1)
    ratio = torch.exp(found - weight[drawn].log() - seen[:, None])  # of a draw, what it stands for
    mean, spread = ratio.mean(1), ratio.std(1) / draws**0.5
    most = mean + spread * (_Z + (_Z**3 + _Z) / (4 * (draws - 1)))
    return Sampled(*(float((x / (1 + x)).max()) for x in (mean, most)))


def _fetched(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    rows: np.ndarray,
    reach: int | None,
    inv_freq: Tensor | None,
) -> Tensor:
    """`block_masses` of blocks that are fetched for it. Damaged ones hold nothing."""
    tiers, index = shelf.store.near(), shelf.index
    blocks = index.blocks[rows].tolist()
    pages, _ = tiers.fetch(blocks, layer)
    try:
        return block_masses(shelf, layer, asked, rows, pages, reach, inv_freq)
    finally:
        tiers.unpin([b for b, page in zip(blocks, pages, strict=True) if page >= 0], layer)


def block_masses(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    rows: np.ndarray,
    pages: Sequence[int],
    reach: int | None = None,
    inv_freq: Tensor | None = None,
) -> Tensor:
    """Log of the sum of exp(logit) over each block's keys, exact: fp64 [W * Hq, len(rows)], for
    rows of the shelf's index that are in these pages of the pool; -inf where a page is -1.
    """
    index, pool = shelf.index, shelf.store.pool
    w, hq, dim = asked.q.shape
    made = torch.full((w * hq, len(rows)), -torch.inf, dtype=torch.float64)
    there = [i for i, page in enumerate(pages) if page >= 0]
    if not there:
        return made
    at, taken = torch.tensor([pages[i] for i in there]), rows[there]
    k = pool.k[layer, at.to(pool.k.device)].float().cpu()  # [n, Hkv, D, P]
    if pool.k_scale is not None:
        k = k * pool.k_scale[layer, at.to(pool.k.device)].cpu()[:, :, None]
    places = torch.from_numpy(_shift(index, reach)[taken])
    q = _seen_from(asked, places, reach, inv_freq).unflatten(2, (k.shape[1], -1))
    logits = torch.einsum("nwhgd,nhdp->nwhgp", q, k).double() * dim**-0.5
    empty = torch.arange(k.shape[3]) >= torch.from_numpy(index.counts[taken])[:, None]
    logits = logits.masked_fill(empty[:, None, None, None], -torch.inf)
    made[:, there] = logits.logsumexp(-1).flatten(1).T
    return made
