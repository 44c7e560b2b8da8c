# SPDX-License-Identifier: Apache-2.0
"""ExpectedAttention: what queries yet to come will look at, if they are like those seen so far.

Devoto et al., arXiv 2510.00636, as in kvpress: queries are Gaussian, their rotation is averaged
over the next 512 positions, the first 4 tokens are sinks, and attention counts times |v|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .common import Kept, best, whole_number


def mean_rotation(inv_freq: Tensor, position: int, future: int, dim: int) -> Tensor:
    """fp32 [D, D]: RoPE (halves turned together) averaged over `future` positions."""
    at = torch.arange(position, position + future, dtype=torch.float64, device=inv_freq.device)
    angle = at[:, None] * inv_freq.double()
    cos, sin = angle.cos().mean(0).float(), angle.sin().mean(0).float()
    half = inv_freq.shape[0]
    turn = torch.eye(dim, device=inv_freq.device)
    i = torch.arange(half, device=inv_freq.device)
    turn[i, i] = turn[i + half, i + half] = cos
    turn[i, i + half], turn[i + half, i] = -sin, sin
    return turn


def score(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inv_freq: Tensor | None = None,
    *,
    sinks: int = 4,
    future: int = 512,
    epsilon: float = 0.0,
) -> Tensor:
    """fp32 [B, Hkv, N]; the sinks get the largest of the batch.

    q [B, Hq, N, D]: all queries so far, not yet turned. k, v [B, Hkv, N, D], keys turned. inv_freq
    [D/2 or less]: RoPE frequencies, None for no RoPE.
    """
    whole_number("expected_attention", "sinks", sinks, 0)
    whole_number("expected_attention", "future", future, 1)
    n, dim = k.shape[2:]
    if n <= sinks:
        return torch.ones(k.shape[:3], device=k.device)
    x = q[:, :, min(sinks, q.shape[2] - 1) :].float()
    mean = x.mean(2, keepdim=True)
    cov = (x - mean).mT @ (x - mean) / x.shape[2]
    if inv_freq is not None:
        turn = mean_rotation(inv_freq, q.shape[2], future, dim)
        mean, cov = mean @ turn.T, turn @ cov @ turn.T
    k, v = k[:, :, sinks:], v[:, :, sinks:]
    logits = ops.block_score(mean, k, heads="each", scale=dim**-0.5).unflatten(1, (k.shape[1], -1))
    keys = k.float()[:, :, None]
    logits = logits + ((keys @ cov.unflatten(1, (k.shape[1], -1))) * keys).sum(-1) / (2 * dim)
    expected = logits.softmax(-1).mean(2) + epsilon
    s = expected * torch.linalg.vector_norm(v, dim=-1, dtype=torch.float32)
    most = s.amax((1, 2), keepdim=True).expand(-1, s.shape[1], sinks)
    return torch.cat([most, s], -1)


def keep(q: Tensor, k: Tensor, v: Tensor, budget: int, inv_freq: Tensor | None = None, *,
         sinks: int = 4, future: int = 512, epsilon: float = 0.0) -> Kept:  # fmt: skip
    """The sinks and the best of the rest, `budget` in all."""
    s = score(q, k, v, inv_freq, sinks=sinks, future=future, epsilon=epsilon)
    return best("expected_attention", s, budget, first=min(sinks, budget, k.shape[2]))
