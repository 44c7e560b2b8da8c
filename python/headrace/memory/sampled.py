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
from .dial import Masses
from .recall import Asked, _seen_from, _shift, bounds
from .shelf import Shelf

FIRST = 8
"""Blocks that are taken at once, to begin with."""
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
    rest = np.ones(len(shelf.index), bool)
    rest[chosen] = False
    left = np.flatnonzero(rest)
    if not len(left):
        return Sampled(0.0, 0.0)
    sample = _Sample(shelf, layer, asked, m, left, reach, inv_freq, draws)
    held = _fetched(shelf, layer, asked, chosen, reach, inv_freq)
    return sample.beside(np.empty(0, np.int64), _seen(asked, held))


def by_sample(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    p: float,
    most: int,
    reach: int | None = None,
    inv_freq: Tensor | None = None,
    draws: int = 32,
) -> tuple[np.ndarray, Sampled]:
    """Blocks with which every query and head captures the share p of its softmax, as far as a
    sample can tell, and what it told: `most` of them at most, and those if that is not enough.

    Blocks are taken in the order of the largest logit that they may hold and in that of n
    exp(q.mean), in turn: one finds few keys among others, the other many alike. Of the rows that
    counts for which it is most. Twice as many are taken each time until the limit `at_most` is
    within 1 - p. Exact are the masses of what was taken. Needs an Archive with index "bounds".
    """
    if not 0 <= p <= 1:
        raise bad_value("by_sample", "p", "a share from 0 to 1", p)
    m = bounds(shelf, layer, asked, reach, inv_freq)
    n = m.low.shape[1]
    none = np.empty(0, np.int64)
    if not n:
        return none, Sampled(0.0, 0.0)
    sample = _Sample(shelf, layer, asked, m, np.arange(n), reach, inv_freq, draws)
    assert m.peak is not None
    whole = torch.logaddexp(asked.lse.double().reshape(-1), m.low.double().logsumexp(1))
    order = _in_turn(*((x - whole[:, None]).amax(0) for x in (m.peak, m.low)))[: max(most, 0)]
    taken, found = 0, [torch.empty(len(m.low), 0, dtype=torch.float64)]
    while True:
        left = np.setdiff1d(np.arange(n), order[:taken])
        if not len(left):
            return np.sort(order[:taken]), Sampled(0.0, 0.0)
        if sample.outside(order[:taken]) < draws / 2:  # what was drawn is mostly taken by now
            sample = _Sample(shelf, layer, asked, m, left, reach, inv_freq, draws)
        told = sample.beside(order[:taken], _seen(asked, torch.cat(found, 1)))
        if told.at_most <= 1 - p or taken == len(order):
            return np.sort(order[:taken]), told
        more = order[taken : max(2 * taken, FIRST)]
        found.append(_fetched(shelf, layer, asked, more, reach, inv_freq))
        taken += len(more)


def _in_turn(*ranks: Tensor) -> np.ndarray:
    """Indices by each rank [n], highest first, one of each after the other, none twice."""
    orders = [torch.argsort(rank, descending=True, stable=True) for rank in ranks]
    every = torch.stack(orders, 1).flatten().numpy()
    return every[np.sort(np.unique(every, return_index=True)[1])]


def _seen(asked: Asked, held: Tensor) -> Tensor:
    """Log mass [rows] of what queries see without the archive, and of blocks [rows, n]."""
    return torch.logsumexp(torch.cat([asked.lse.double().reshape(-1, 1), held], 1), 1)


class _Sample:
    """Blocks drawn of `left`, and their masses: fetched once."""

    def __init__(
        self,
        shelf: Shelf,
        layer: int,
        asked: Asked,
        m: Masses,
        left: np.ndarray,
        reach: int | None,
        inv_freq: Tensor | None,
        draws: int,
    ) -> None:
        if draws < 2:
            raise bad_value("sampled", "draws", "2 or more", draws)
        weight = torch.softmax(m.low[:, torch.from_numpy(left)].double(), 1).mean(0)
        weight = (1 - UNIFORM) * weight + UNIFORM / len(left)
        drawn = torch.multinomial(
            weight, draws, replacement=True, generator=torch.Generator().manual_seed(len(left))
        )
        self._rows = left[drawn.numpy()]
        kinds, which = np.unique(self._rows, return_inverse=True)
        found = _fetched(shelf, layer, asked, kinds, reach, inv_freq)
        self._stands = found[:, torch.from_numpy(which)] - weight[drawn].log()  # log, of a draw

    def outside(self, chosen: np.ndarray) -> int:
        """How many draws are of other blocks."""
        return int((~np.isin(self._rows, chosen)).sum())

    def beside(self, chosen: np.ndarray, seen: Tensor) -> Sampled:
        """What is missed of those drawn from, beside `chosen`; seen [rows], the log mass of all
        that is seen."""
        outside = torch.from_numpy(~np.isin(self._rows, chosen))
        ratio = torch.exp(self._stands - seen[:, None]) * outside
        mean, draws = ratio.mean(1), ratio.shape[1]
        t = _Z + (_Z**3 + _Z) / (4 * (draws - 1))
        most = mean + t * ratio.std(1) / draws**0.5
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
