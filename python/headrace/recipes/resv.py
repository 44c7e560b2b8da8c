# SPDX-License-Identifier: Apache-2.0
"""ReSV: tokens in clusters of keys whose signs agree, recalled until their weight is enough.

V-Rex, Kim et al., arXiv 2512.12284 (no public code): 32 random hyperplanes give every key 32 bits;
a token joins a cluster when fewer than 7 of them differ, or else leads one; a query takes clusters
in the order of count times score until their sum exceeds 0.3 of it all (WiCSum).

Chosen here: a token joins the nearest leader, the older one of equals, and a cluster keeps its
leader's bits. The weight of a cluster is count * exp(score - largest score), an estimate of its
softmax mass, which is meant for any score; `raw` is the paper's sum, scores below 0 counting 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from .common import Kept, whole_number

BITS, NEAR, SHARE = 32, 7, 0.3


def planes(dim: int, *, bits: int = BITS, seed: int = 0) -> Tensor:
    """fp32 [D, bits]: random directions; bits a multiple of 32."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(dim, bits, generator=made)


def signs(k: Tensor, planes: Tensor) -> Tensor:
    """int32 [..., bits / 32] of keys [..., D]: a bit is 1 where the product is above 0."""
    above = (k.float() @ planes.to(k.device) > 0).unflatten(-1, (-1, 32)).long()
    words = (above << torch.arange(32, device=k.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


@dataclass
class Clusters:
    """Of one head. bits int32 [M, words] of the leaders, leader fp32 [M, D]; total, low and high
    fp32 [M, D] of the keys, and count [M]; squares fp64 [M], the sum of |k|^2, and far fp64 [M],
    the largest distance of a key from the leader; ids int64 [N]: the cluster of every token.
    """

    bits: Tensor
    leader: Tensor
    total: Tensor
    low: Tensor
    high: Tensor
    count: Tensor
    squares: Tensor
    far: Tensor
    ids: Tensor

    @property
    def mean(self) -> Tensor:
        """fp32 [M, D]."""
        return self.total / self.count[:, None]

    @staticmethod
    def none(words: int, dim: int, device: torch.device | str = "cpu") -> Clusters:
        """No tokens yet."""
        rows = torch.zeros(0, dim, device=device)
        empty = rows[:, 0].double()
        bits = torch.zeros(0, words, dtype=torch.int32, device=device)
        return Clusters(bits, rows, rows, rows, rows, empty.int(), empty, empty, empty.long())


def join(c: Clusters, k: Tensor, bits: Tensor, *, near: int = NEAR) -> Clusters:
    """With the tokens of keys [N, D] and bits int32 [N, words] more, in their order."""
    whole_number("resv", "near", near, 0)
    n, many = len(k), len(c.bits)
    if not n:
        return c
    at = torch.arange(n, device=k.device)
    ids, differ = torch.full_like(at, -1), torch.full_like(at, near)
    if many:
        found, agree = ops.assign(bits, c.bits, metric="hamming")
        ids = torch.where(-agree < near, found, -1).long()
        differ = torch.where(-agree < near, -agree, near).long()
    leaders: list[int] = []
    while (alone := (ids < 0).nonzero()).numel():  # its earliest token leads; others may follow
        first = int(alone[0])
        _, agree = ops.assign(bits, bits[first : first + 1], metric="hamming")
        closer = (-agree.long() < differ) & (at > first)
        closer[first] = True
        ids[closer] = many + len(leaders)
        differ[closer] = -agree.long()[closer]
        leaders.append(first)
    leader = torch.cat([c.leader, k[leaders].float()])
    grown = torch.zeros(len(leaders), k.shape[1], device=k.device)
    total = torch.cat([c.total, grown])[:, None]
    low = torch.cat([c.low, grown + torch.inf])[:, None]
    high = torch.cat([c.high, grown - torch.inf])[:, None]
    count = torch.cat([c.count, c.count.new_zeros(len(leaders))])
    rows = k.float()[:, None].contiguous()
    ops.segment_reduce(rows, ids.int(), total=total, low=low, high=high, count=count)
    zeros = c.far.new_zeros(len(leaders))
    x = k.double()
    squares = torch.cat([c.squares, zeros]).index_add(0, ids, x.square().sum(-1))
    apart = (x - leader[ids].double()).norm(dim=-1)
    far = torch.cat([c.far, zeros]).scatter_reduce(0, ids, apart, "amax")
    return Clusters(
        torch.cat([c.bits, bits[leaders]]),
        leader,
        total[:, 0],
        low[:, 0],
        high[:, 0],
        count,
        squares,
        far,
        torch.cat([c.ids, ids]),
    )


def score(q: Tensor, mean: Tensor, *, scale: float | None = None) -> Tensor:
    """fp32 [W, M]: queries [W, D] of a head (or of all that share a kv head) times mean keys."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    asked = q.float()[:, None, None].contiguous()
    return ops.block_score(asked, mean.float()[None, None], heads="each", scale=scale)[:, 0]


def keep(scores: Tensor, count: Tensor, *, share: float = SHARE, raw: bool = False) -> Kept:
    """Clusters that the queries of scores [W, M] need, each on its own: of every row the fewest,
    best first, whose weight reaches `share` of all. Indices [W, M], counts [W]; what is fetched is
    their union.
    """
    if not raw:
        return ops.select(scores, "mass", mass=share, counts=count.float())
    clusters = torch.arange(scores.shape[-1], device=scores.device)
    weight = scores.double().clamp_min(0) * count
    order = weight.argsort(dim=-1, descending=True, stable=True)
    sums = weight.gather(-1, order).cumsum(-1)
    number = (sums <= share * weight.sum(-1, keepdim=True)).sum(-1) + 1  # the sum must exceed it
    number = torch.where(weight.sum(-1) > 0, number.clamp(max=len(clusters)), 0)
    rank = torch.empty_like(order).scatter_(-1, order, clusters.expand_as(order))
    index = torch.where(rank < number[:, None], clusters, len(clusters)).sort(-1).values
    return torch.where(index < len(clusters), index, -1).int(), number.int()
