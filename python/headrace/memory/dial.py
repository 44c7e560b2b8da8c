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

    low <= log mass <= high; `low` is also the centroid's estimate. peak: no logit is
    above it, by the box alone: it ranks blocks with a few keys for the query better than `high`.
    """

    low: Tensor
    high: Tensor
    peak: Tensor | None = None


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
    groups: Tensor | None = None,
) -> Masses:
    """Bounds for queries q [W, Hq, D], turned to where the blocks are to be seen, over summaries
    [Hkv, n, D] (fp32) of counts [n] keys. Rows are W * Hq.

    Where not all blocks are seen from one place, q is [S, W, Hq, D] and groups int32 [S, R] names
    the blocks that the queries of each place are for, every block once; -1 is none.
    """
    whole = groups is None
    if groups is None:
        q, groups = q[None], torch.empty(1, 0, dtype=torch.int32)
    places, w, hq, _ = q.shape
    n, group = centre.shape[1], hq // centre.shape[0]
    asked = q.float().flatten(0, 1)[:, :, None].contiguous()
    rows = groups.repeat_interleave(w, 0).contiguous()
    named = groups >= 0
    to = groups[named].long()

    def score(x: Tensor, keys: Tensor, upper: Tensor | None = None) -> Tensor:
        """fp32 [W, Hq, n]."""
        upper = None if upper is None else upper[None]
        index = None if whole else rows
        s = ops.block_score(x, keys[None], upper=upper, index=index, heads="each", scale=scale)
        if whole:
            return s
        made = s.new_empty(w, hq, n)
        made[:, :, to] = s.view(places, w, hq, -1).permute(1, 2, 0, 3)[:, :, named]
        return made

    c = score(asked, centre)
    size = q[0].float().norm(dim=-1, keepdim=True) * scale  # the same wherever they are turned to
    far, wide = (spread[:, :, i].repeat_interleave(group, 0)[None] for i in (0, 1))
    box = score(asked, low, high)
    b = torch.minimum(box - c, size * far).clamp_min_(1e-12)
    variance = score(-asked, low, high).add_(c).clamp_min_(0).mul_(b)  # |least corner - c| b
    variance = torch.minimum((size * wide).square_(), variance)
    t = variance / (b * b + variance)  # the weight of exp(b)
    inside = torch.log(t + (1 - t) * torch.exp(-variance / b - b)).add_(b).clamp_min_(0)
    many = counts.log()
    made = many + c - SLACK, many + c + inside + SLACK, box + SLACK
    return Masses(*(x.view(-1, n) for x in made))


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
    low, high = m.low.double(), m.high.double()
    top = torch.maximum(high.amax(1) if n else base, base).nan_to_num_(neginf=0.0)[:, None]
    low, high = torch.exp(low - top), torch.exp(high - top)
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
