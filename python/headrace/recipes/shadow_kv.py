# SPDX-License-Identifier: Apache-2.0
"""ShadowKV: chunks by landmarks, beside chunks that a landmark does not describe.

Sun et al., arXiv 2410.21465, and its code: a landmark is the mean of 8 rotated keys; the 48 chunks
with the least cosine between a key and its landmark and the 4 newest chunks always stay; every
kv head takes 2048 tokens' worth of the others by softmax over landmarks, the largest of its heads.
Its low-rank keys are not part of this.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .common import Kept, best, summary, whole_number


def landmarks(k: Tensor, *, chunk: int = 8) -> Tensor:
    """fp32 [B, Hkv, M, D]: mean key of every chunk of k [B, Hkv, N, D]; the last may be short."""
    whole_number("shadow_kv", "chunk", chunk, 1)
    states = summary(k, chunk, ("total", "count"))
    return states["total"] / states["count"].clamp(min=1)[..., None]


def outliers(k: Tensor, *, chunk: int = 8, count: int = 48) -> Kept:
    """The `count` chunks whose least cosine of a key with its landmark is least."""
    batch, heads, n, dim = k.shape
    mean = landmarks(k, chunk=chunk)
    many = mean.shape[2]
    if not n:
        return best("shadow_kv", mean[..., 0], count)
    at = torch.arange(n, device=k.device) // chunk
    row = torch.arange(batch * heads, device=k.device)[:, None] * many + at
    like = ops.similarity(k.reshape(-1, n, dim), mean.reshape(-1, dim), "cos", index=row.int())
    least = torch.full((batch * heads, many), torch.inf, device=k.device)
    least.scatter_reduce_(1, at.expand_as(like), like, "amin")
    return best("shadow_kv", least.view(batch, heads, many), count, lowest=True)


def score(q: Tensor, mean: Tensor) -> Tensor:
    """fp32 [B, Hkv, M] of one query per head q [B, Hq, 1, D]: its share of the softmax over
    landmarks, the largest of the heads that share a kv head.
    """
    if not mean.shape[2]:
        return torch.zeros(mean.shape[:3], device=mean.device)
    logits = ops.block_score(q, mean, heads="each", scale=float(q.shape[-1]) ** -0.5)
    return logits.softmax(-1).unflatten(1, (mean.shape[1], -1)).amax(2)


def keep(
    scores: Tensor,
    budget: int = 2048,
    *,
    chunk: int = 8,
    local: int = 4,
    always: Kept | None = None,
) -> Kept:
    """Chunks: budget // chunk best, the `local` newest, and those `always` kept, such as outliers;
    the latter two do not count in the budget.
    """
    whole_number("shadow_kv", "budget", budget, 0)
    n = scores.shape[-1]
    s = scores.clone()
    s[..., max(0, n - local) :] = -torch.inf
    safe = torch.zeros(*s.shape[:2], n + 1, dtype=torch.bool, device=s.device)
    if always is not None:
        safe.scatter_(-1, torch.where(always[0] < 0, n, always[0]).long(), True)
    index, _ = best("shadow_kv", s.masked_fill(safe[..., :n], -torch.inf), budget // chunk)
    safe.scatter_(-1, torch.where(index < 0, n, index).long(), True)
    safe[..., max(0, n - local) : n] = True
    return ops.select(safe[..., :n].float(), "threshold", threshold=0.5)
