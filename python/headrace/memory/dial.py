# SPDX-License-Identifier: Apache-2.0
"""How much to recall: until the share of the softmax that is captured reaches p.

Of a block only its summary is near: n keys, their mean, the box [low, high] that holds them, their
largest distance r from the mean, and their largest standard deviation d in any direction. A query's
logits over the block have the mean c = q.mean and exceed it by at most b, the smaller of |q| r and
the box's corner; their variance is at most s = min((|q| d)^2, b (c - least corner)). The block's
mass M, the sum of exp(logit), is therefore (Jensen below, Bennett's two-point bound above)

    n exp(c)  <=  M  <=  n exp(c) (b^2 exp(-s / b) + s exp(b)) / (b^2 + s).

With what is captured at least L and what is left out at most U, the captured share is at least
L / (L + U): a statement about every key, made before any of them is fetched. Without `proven`
blocks are chosen by n exp(c) alone (RetroInfer's estimate, V-Rex's cumulative mass), which is fewer
of them, and the same bound on what that misses is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value

SLACK = 1e-4
"""Relative room for rounding in the bounds of a block's mass."""


@dataclass(frozen=True)
class Masses:
    """Log bounds of the mass of every block for every row (a query of a head): fp32 [rows, n].

    low <= log mass <= high; `low` is also the centroid's estimate.
    """

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Dialled:
    """chosen: indices of blocks, ascending, any row's. captured: the least share of the softmax
    that any row captures by the estimate. missed: the largest share that any row can miss, exact
    bounds, fp64.
    """

    chosen: Tensor
    captured: float
    missed: float


def masses(
    q: Tensor,
    centre: Tensor,
    low: Tensor,
    high: Tensor,
    spread: Tensor,
    counts: Tensor,
    scale: float,
) -> Masses:
    """Bounds for queries q [W, Hq, D], turned to where the blocks are to be seen, over summaries
    [Hkv, n, D] (fp32) of counts [n] keys. Rows are W * Hq.
    """
    n, group = centre.shape[1], q.shape[1] // centre.shape[0]
    asked = q.float()[:, :, None].contiguous()

    def score(x: Tensor, keys: Tensor, upper: Tensor | None = None) -> Tensor:
        upper = None if upper is None else upper[None]
        s = ops.block_score(x, keys[None], upper=upper, heads="each", scale=scale)
        return s[:, :, 0] if s.dim() == 4 else s

    c = score(asked, centre).double()
    size = asked.double().norm(dim=-1) * scale  # [W, Hq, 1]
    far, wide = (spread[:, :, i].double().repeat_interleave(group, 0)[None] for i in (0, 1))
    above = torch.minimum(score(asked, low, high).double() - c, size * far).clamp_min(0)
    below = (c + score(-asked, low, high).double()).clamp_min(0)
    variance = torch.minimum((size * wide) ** 2, above * below)
    b = above.clamp_min(1e-12)
    t = variance / (b * b + variance)  # the weight of exp(b)
    inside = torch.log1p((torch.exp(-variance / b - b) - 1) * (1 - t)) + b
    many = counts.double().log()
    least, most = many + c - SLACK, many + c + inside.clamp_min(0) + SLACK
    return Masses(least.reshape(-1, n), most.reshape(-1, n))


def dial(m: Masses, p: float, *, near: Tensor | None = None, proven: bool = True) -> Dialled:
    """The fewest blocks, for each row on its own, with which the row captures the share p.

    near: log mass [rows] of what the queries see anyway (an lse); none without it. The union over
    rows is chosen, so every row has at least p. proven: by the bounds; otherwise by the estimate.
    """
    if not 0 <= p <= 1:
        raise bad_value("dial", "p", "a share from 0 to 1", p)
    rows, n = m.low.shape
    base = torch.full((rows,), -torch.inf, dtype=torch.float64)
    base = base if near is None else near.double().reshape(rows)
    top = torch.maximum(m.high.amax(1) if n else base, base).nan_to_num_(neginf=0.0)[:, None]
    low, high = torch.exp(m.low - top), torch.exp(m.high - top)
    seen = torch.exp(base[:, None] - top)
    left = high if proven else low
    order = torch.argsort(left, dim=1, descending=True, stable=True)
    gained = torch.cat([seen, seen + low.gather(1, order).cumsum(1)], 1)
    lost = left.gather(1, order).flip(1).cumsum(1).flip(1)
    lost = torch.cat([lost, torch.zeros(rows, 1, dtype=torch.float64)], 1)
    enough = gained >= p * (gained + lost)
    enough[:, n] = True
    need = enough.int().argmax(1)
    taken = torch.zeros(rows, n, dtype=torch.bool)
    taken.scatter_(1, order, torch.arange(n)[None] < need[:, None])
    union = taken.any(0)
    got = seen[:, 0] + (low * union).sum(1)
    return Dialled(
        union.nonzero()[:, 0],
        _least(got, (low * ~union).sum(1)),
        1 - _least(got, (high * ~union).sum(1)),
    )


def _least(got: Tensor, rest: Tensor) -> float:
    share = torch.where(rest > 0, got / (got + rest), 1.0)
    return float(share.min()) if len(share) else 1.0


def missed(lse: Tensor, high: Tensor) -> float:
    """The largest share of the softmax that any row misses: lse [rows] of what it saw, high [rows,
    n] log bounds of the blocks that it did not see. Tighter than before the fetch.
    """
    if not high.shape[1]:
        return 0.0
    rest = torch.logsumexp(high.double(), 1)
    return float(torch.sigmoid(rest - lse.double().reshape(-1)).max())


def estimate(
    q: Tensor, centre: Tensor, value: Tensor, counts: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of q [W, Hq, D] to blocks as if every key were its block's mean: (o [W, Hq, D]
    fp32, lse [W, Hq]), to be merged with that of what was fetched (`ops.merge_states`).
    """
    group = q.shape[1] // centre.shape[0]
    c = ops.block_score(q.float()[:, :, None].contiguous(), centre[None], heads="each", scale=scale)
    logits = c + counts.float().log()
    lse = torch.logsumexp(logits, -1)
    weight = torch.exp(logits - lse.nan_to_num(neginf=0.0)[..., None])
    o = torch.einsum("whn,hnd->whd", weight, value.repeat_interleave(group, 0))
    return o.contiguous(), lse
