# SPDX-License-Identifier: Apache-2.0
"""LagKV: tokens that stand out, seen from the range of the partition that follows theirs.

Liang et al., arXiv 2504.04704; 4 sinks and partitions of 128, as in kvpress. Needs no query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .common import Kept, best, whole_number


def spread(x: Tensor) -> Tensor:
    """Of partitions [..., M, L, D]: for all but the last, softmax over L of the deviation over D.

    Elements are placed in the range of the next partition; one without a range counts 0.
    """
    low, high = x[..., 1:, :, :].amin(-2, True), x[..., 1:, :, :].amax(-2, True)
    width = high - low
    there = (x[..., :-1, :, :] - low) / torch.where(width > 0, width, 1.0)
    return torch.where(width > 0, there, 0.0).std(-1).softmax(-1)


def score(k: Tensor, v: Tensor, *, lag: int = 128, sinks: int = 4) -> Tensor:
    """fp32 [B, Hkv, N]: rank in the partition over `lag`, from 0 to below 1.

    k, v [B, Hkv, N, D]. Of equals the first ranks highest. 1 for the sinks, the last whole
    partition and what follows it; for all if less than two partitions follow the sinks.
    """
    whole_number("lag_kv", "lag", lag, 1)
    whole_number("lag_kv", "sinks", sinks, 0)
    batch, heads, n, _ = k.shape
    scores = torch.ones(batch, heads, n, device=k.device)
    parts = max(n - sinks, 0) // lag
    if parts < 2:
        return scores
    x = [t[:, :, sinks : sinks + parts * lag].float().unflatten(2, (parts, lag)) for t in (k, v)]
    both = (spread(x[0]) + spread(x[1])) / 2
    order = both.argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(lag, device=k.device).expand_as(order)
    rank = lag - 1 - torch.empty_like(order).scatter_(-1, order, place)
    scores[:, :, sinks : sinks + (parts - 1) * lag] = (rank / lag).flatten(2)
    return scores


def keep(k: Tensor, v: Tensor, budget: int, *, lag: int = 128, sinks: int = 4) -> Kept:
    """Sinks, the uncompressed tail, and the best of every partition, `budget` in all.

    More only where sinks and tail are more: a sequence too short to compress stays whole.
    """
    whole_number("lag_kv", "lag", lag, 1)
    n = k.shape[2]
    parts = max(n - sinks, 0) // lag
    tail = n - sinks - (parts - 1) * lag if parts >= 2 else n
    first, last = min(sinks, n), min(tail, n)
    return best("lag_kv", score(k, v, lag=lag, sinks=sinks), budget, first=first, last=last)
