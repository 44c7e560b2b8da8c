# SPDX-License-Identifier: Apache-2.0
"""What a recall misses, measured: a few of the blocks left out are looked at.

A bound from summaries must allow for one key among many that points along the query, and no summary
much smaller than the keys can rule that out; so it is often near 1. How far the true mass of blocks
is from n exp(q.mean), on the other hand, varies little from block to block, and a sample tells it.

What a sample cannot tell is what it has not met: blocks that hold more than any of those drawn. It
does say how few they are, and of all the others the limit holds with the chance that is named, for
whatever keys: X = mass / chance of a draw is at most its largest of n draws, but for a share q of
draws with (1 - q)^n = d; and the mean of numbers up to C exceeds the u at which
n kl(mean of the draws / C, u / C) = log(1 / d) with a chance of d at most (Hoeffding, 1963).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import bad_value
from .dial import Masses, missed
from .recall import Asked, _seen_from, _shift, bounds
from .shelf import Shelf

FIRST = 8
"""Blocks that are taken at once, to begin with."""
DRAWS = 64
"""Blocks that are looked at for a limit."""
UNIFORM = 0.5
"""Of the draws, the share that goes to all blocks alike: none has a chance of nothing."""
SURE = 0.95
"""Chance with which what is said of a sample holds."""


@dataclass(frozen=True)
class Sampled:
    """Of the softmax of the row that misses most: missed, the share of what is left out, unbiased
    before it is divided by the whole; at_most, a limit of it that holds with the chance `sure`.

    unlike: the share of the blocks left out, as they are drawn (half alike, half by their
    estimates), that the limit leaves out of account, for they may hold more than any that was
    drawn. Where `sure` is 1 the limit is proven, of all of them: see `Dialled.missed`.
    """

    missed: float
    at_most: float
    sure: float = 1.0
    unlike: float = 0.0


def sampled(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    m: Masses,
    chosen: np.ndarray,
    reach: int | None = None,
    inv_freq: Tensor | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Sampled:
    """What every query misses beside what it sees without the archive and the blocks `chosen`
    (rows of the shelf's index); m: bounds of all, as `recall.bounds` gives them.

    Blocks are drawn, with replacement, and fetched: one layer of `draws` blocks at most moves.
    The same seed draws the same blocks. ValueError when no near page is free to look at them.
    """
    look = _Look(shelf, layer, asked, m, reach, inv_freq, draws, seed)
    return look.beside(chosen, look.seen(chosen), 1 - SURE)


def by_sample(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    p: float,
    most: int,
    reach: int | None = None,
    inv_freq: Tensor | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[np.ndarray, Sampled]:
    """Blocks with which every query and head captures the share p of its softmax, as far as a
    sample can tell, and what it told: `most` of them at most, and those if that is not enough.

    Blocks are taken in the order of the largest logit that they may hold and in that of n
    exp(q.mean), in turn: one finds few keys among others, the other many alike. Of the rows that
    counts for which it is most. Twice as many are taken each time until the limit `at_most` is
    within 1 - p. Exact are the masses of what was taken. A first sample says when the limit is
    worth trying; each try draws anew, with half the doubt of the one before, so that they all hold
    together with the chance `SURE`. Needs an Archive with index "bounds".
    """
    if not 0 <= p <= 1:
        raise bad_value("by_sample", "p", "a share from 0 to 1", p)
    m = bounds(shelf, layer, asked, reach, inv_freq)
    n = m.low.shape[1]
    look = _Look(shelf, layer, asked, m, reach, inv_freq, draws, seed)
    assert m.peak is not None
    whole = torch.logaddexp(asked.lse.double().reshape(-1), m.low.double().logsumexp(1))
    order = _in_turn(*((x - whole[:, None]).amax(0) for x in (m.peak, m.low)))[: max(most, 0)]
    first = look.draw(np.arange(n)) if n else None
    taken, seen, doubt = 0, look.seen(order[:0]), 1 - SURE
    while True:
        chosen = order[:taken]
        last = taken == len(order)
        proven = missed(seen, m.high[:, _others(n, chosen)])
        if proven <= 1 - p:
            return np.sort(chosen), Sampled(proven, proven)
        if last or first is None or first.mean(chosen, seen) <= 1 - p:
            doubt /= 2
            told = look.beside(chosen, seen, doubt)
            if told.at_most <= 1 - p or last:
                return np.sort(chosen), told
        more = order[taken : max(2 * taken, FIRST)]
        seen = torch.logaddexp(seen, look.masses(more).logsumexp(1))
        taken += len(more)


def _in_turn(*ranks: Tensor) -> np.ndarray:
    """Indices by each rank [n], highest first, one of each after the other, none twice."""
    orders = [torch.argsort(rank, descending=True, stable=True) for rank in ranks]
    every = torch.stack(orders, 1).flatten().numpy()
    return every[np.sort(np.unique(every, return_index=True)[1])]


def _others(n: int, chosen: np.ndarray) -> np.ndarray:
    """Of 0..n-1 those that were not chosen."""
    rest = np.ones(n, bool)
    rest[chosen] = False
    return np.flatnonzero(rest)


@dataclass(frozen=True)
class _Draws:
    """Blocks drawn, and the log of their mass over the chance of a draw: [rows, draws]."""

    blocks: np.ndarray
    stands: Tensor

    def ratios(self, chosen: np.ndarray, seen: Tensor) -> Tensor:
        """Of each draw, what it stands for as a share of what is seen; 0 for what was chosen."""
        outside = torch.from_numpy(~np.isin(self.blocks, chosen))
        return torch.exp(self.stands - seen[:, None]) * outside

    def mean(self, chosen: np.ndarray, seen: Tensor) -> float:
        """The share that is missed, of the row that misses most."""
        return _share(self.ratios(chosen, seen).mean(1))


class _Look:
    """What one question sees of blocks when they are looked at."""

    def __init__(
        self,
        shelf: Shelf,
        layer: int,
        asked: Asked,
        m: Masses,
        reach: int | None,
        inv_freq: Tensor | None,
        draws: int,
        seed: int,
    ) -> None:
        if draws < 2:
            raise bad_value("sampled", "draws", "2 or more", draws)
        self._where = shelf, layer, asked
        self._turns = reach, inv_freq
        self._m, self._draws = m, draws
        self._generator = torch.Generator().manual_seed(seed)

    def masses(self, rows: np.ndarray) -> Tensor:
        """Log masses fp64 [W * Hq, len(rows)], exact."""
        return _fetched(*self._where, rows, *self._turns)

    def seen(self, chosen: np.ndarray) -> Tensor:
        """Log mass [W * Hq] of what queries see without the archive, and of chosen blocks."""
        near = self._where[2].lse.double().reshape(-1)
        return torch.logaddexp(near, self.masses(chosen).logsumexp(1)) if len(chosen) else near

    def draw(self, left: np.ndarray) -> _Draws:
        """Of these blocks, with replacement."""
        weight = torch.softmax(self._m.low[:, left].double(), 1).mean(0)
        weight = (1 - UNIFORM) * weight + UNIFORM / len(left)
        drawn = torch.multinomial(weight, self._draws, True, generator=self._generator)
        kinds, which = np.unique(left[drawn.numpy()], return_inverse=True)
        return _Draws(kinds[which], self.masses(kinds)[:, which] - weight[drawn].log())

    def beside(self, chosen: np.ndarray, seen: Tensor, doubt: float) -> Sampled:
        """What is missed beside `chosen`, by a sample of its own; seen [rows], the log mass of all
        that is seen. doubt: the chance of being wrong.
        """
        left = _others(self._m.low.shape[1], chosen)
        if not len(left):
            return Sampled(0.0, 0.0)
        ratio = self.draw(left).ratios(chosen, seen)
        most = mean_at_most(ratio, doubt / 2)
        unlike = 1 - (doubt / 2) ** (1 / self._draws)
        return Sampled(_share(ratio.mean(1)), _share(most), SURE, unlike)


def mean_at_most(x: Tensor, doubt: float) -> Tensor:
    """Upper limit [rows] of the mean of what x [rows, n], 0 or more, was drawn from, less what is
    above the largest of the row.
    """
    top = x.amax(1)
    share, room = x.mean(1) / top.clamp_min(1e-300), math.log(1 / doubt) / x.shape[1]
    low, high = share, torch.ones_like(share)
    for _ in range(50):
        u = (low + high) / 2
        apart = torch.xlogy(share, share / u) + torch.xlogy(1 - share, (1 - share) / (1 - u))
        low, high = torch.where(apart < room, u, low), torch.where(apart < room, high, u)
    return torch.where(top.isfinite(), top * high, top)


def _share(ratio: Tensor) -> float:
    """The largest, as a share of the whole, of ratios to what is seen."""
    return float((1 / (1 + 1 / ratio)).max())


def _fetched(
    shelf: Shelf,
    layer: int,
    asked: Asked,
    rows: np.ndarray,
    reach: int | None,
    inv_freq: Tensor | None,
) -> Tensor:
    """`block_masses` of blocks that are fetched for it, as many at a time as find near pages that
    nobody uses. Damaged ones hold nothing.
    """
    tiers, index = shelf.store.near(), shelf.index
    parts = [torch.empty(asked.lse.numel(), 0, dtype=torch.float64)]
    room = max(1, tiers.idle_pages(layer))
    for some in np.split(rows, range(room, len(rows), room)):
        blocks = index.blocks[some].tolist()
        pages, _ = tiers.fetch(blocks, layer)
        try:
            parts.append(block_masses(shelf, layer, asked, some, pages, reach, inv_freq))
        finally:
            tiers.unpin([b for b, page in zip(blocks, pages, strict=True) if page >= 0], layer)
    return torch.cat(parts, 1)


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
