# SPDX-License-Identifier: Apache-2.0
"""RetroInfer: the clusters a query needs exactly, the next best by their centres, the rest not.

Chen et al., arXiv 2505.02922, and its code: k-means in segments of 8192 tokens, 16 tokens to a
cluster; 4 first and 64 newest tokens are always seen; of the clusters the best 0.018 are fetched,
the next 0.232 count as `count` times their centre with the mean of their values.

Chosen here: a cluster's score is the largest over queries and over the heads that share a kv head;
k-means begins at evenly spaced tokens, takes ten rounds by cosine, and a cluster that becomes empty
stays where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from .common import Kept, whole_number


@dataclass
class Clusters:
    """Of a kv head: centre and value fp32 [M, D] (means), count int32 [M], ids int64 [N]."""

    centre: Tensor
    value: Tensor
    count: Tensor
    ids: Tensor


def clusters(
    k: Tensor, v: Tensor, *, size: int = 16, segment: int = 8192, rounds: int = 10
) -> Clusters:
    """Of keys and values [N, D], segment by segment; max(1, n // size) for a segment of n."""
    whole_number("retro_infer", "size", size, 1)
    whole_number("retro_infer", "segment", segment, 1)
    ids, first = [], 0
    for part in k.float().split(segment) if len(k) else ():
        many = max(1, len(part) // size)
        c = part[torch.arange(many, device=k.device) * len(part) // many]
        for _ in range(rounds):
            own = ops.assign(part, c)[0]
            total, count = _sums(part, own, many)
            c = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], c)
        ids.append(ops.assign(part, c)[0].long() + first)
        first += many
    joined = torch.cat([torch.zeros(0, dtype=torch.int64, device=k.device), *ids])
    total, count = _sums(k.float(), joined, first)
    value, _ = _sums(v.float(), joined, first)
    some = count.clamp(min=1)[:, None]
    return Clusters(total / some, value / some, count, joined)


def _sums(x: Tensor, ids: Tensor, many: int) -> tuple[Tensor, Tensor]:
    total = torch.zeros(many, 1, x.shape[1], device=x.device)
    count = torch.zeros(many, dtype=torch.int32, device=x.device)
    ops.segment_reduce(x[:, None].contiguous(), ids.int(), total=total, count=count)
    return total[:, 0], count


def zones(
    q: Tensor, c: Clusters, *, exact: float = 0.018, estimated: float = 0.232
) -> tuple[Tensor, Tensor]:
    """bool [M] each: clusters to fetch, and clusters to estimate, for queries [W, G, D] of the
    heads of a kv head; each share of the clusters rounded up. Empty ones are in neither.
    """
    many = int((c.count > 0).sum())
    fetch, guess = math.ceil(exact * many), math.ceil(estimated * many)
    asked = q.float().reshape(1, 1, -1, q.shape[-1])
    s = ops.block_score(asked, c.centre[None, None], queries="max", heads="max")[0, 0]
    s = s.masked_fill(c.count == 0, -torch.inf)
    best = _mask(ops.select(s, k=min(fetch, many)), len(s))
    both = _mask(ops.select(s, k=min(fetch + guess, many)), len(s))
    return best, both & ~best


def _mask(kept: Kept, n: int) -> Tensor:
    made = torch.zeros(n, dtype=torch.bool, device=kept[0].device)
    made[kept[0][: int(kept[1])].long()] = True
    return made


def estimate(q: Tensor, c: Clusters, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(o [W, G, D] fp32, lse [W, G]) of attention to the chosen clusters (bool [M]) as if all keys
    of each were its centre; to be merged with that of what was fetched by `ops.merge_states`.
    """
    scale = float(q.shape[-1]) ** -0.5
    asked = q.float().reshape(-1, 1, 1, q.shape[-1])
    logits = ops.block_score(asked, c.centre[None, None], heads="each", scale=scale)[:, 0]
    logits = (logits + c.count.float().log()).masked_fill(~chosen, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    weight = (logits - lse.nan_to_num(neginf=0.0)[:, None]).exp()
    return (weight @ c.value).view(q.shape), lse.view(q.shape[:2])
