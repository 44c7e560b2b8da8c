# SPDX-License-Identifier: Apache-2.0
"""InfiniPot-V: past tokens that recent frames do not repeat, and those with large values.

Kim et al., arXiv 2506.15745 (TaR and VaN). The paper pools VaN over 7, 5, 3 or 1 tokens as the
layer's norms vary; which one is the caller's choice here, as is the share of TaR (half by default).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .common import Kept, best, whole_number


def temporal(k: Tensor, tokens: int, recent: int) -> Tensor:
    """fp32 [B, Hkv, N] (TaR): less the mean cosine with the same place of the recent frames.

    k [B, Hkv, N, D]: frames of `tokens` keys each, the last `recent` of them being recent.
    """
    batch, heads, n, dim = k.shape
    whole_number("infinipot_v", "recent", recent, 1)
    if tokens < 1 or n % tokens or n < recent * tokens:
        wanted = f"{recent} or more whole frames of {tokens} tokens"
        raise bad_value("infinipot_v", "k", wanted, f"{n} tokens")
    place = torch.arange(n, device=k.device) % tokens
    which = torch.arange(batch * heads, device=k.device)[:, None] * tokens + place
    unit = torch.zeros(batch * heads * tokens, 1, dim, device=k.device)
    late = torch.arange(n, device=k.device) >= n - recent * tokens
    ids = torch.where(late, which, -1).flatten().int()
    ops.segment_reduce(k.reshape(-1, 1, dim), ids, unit=unit)
    mean = unit[:, 0] / recent
    cos = ops.similarity(k.reshape(-1, n, dim), mean, "cos", index=which.int())
    long = torch.linalg.vector_norm(mean, dim=-1)[which]
    return -(cos * long).view(batch, heads, n)


def values(v: Tensor, *, pool: int = 7) -> Tensor:
    """fp32 [B, Hkv, N] (VaN): norms of v [B, Hkv, N, D], averaged over `pool` neighbours."""
    if pool < 1 or pool % 2 == 0:
        raise bad_value("infinipot_v", "pool", "an odd number", pool)
    norm = torch.linalg.vector_norm(v, dim=-1, dtype=torch.float32)
    return F.avg_pool1d(norm, pool, stride=1, padding=pool // 2) if norm.numel() else norm


def keep(
    k: Tensor,
    v: Tensor,
    budget: int,
    tokens: int,
    *,
    recent: int = 1,
    share: float = 0.5,
    pool: int = 7,
) -> Kept:
    """The recent frames, of the room they leave int(share * room) by TaR, the rest by VaN."""
    n, late = k.shape[2], recent * tokens
    by_time = temporal(k, tokens, recent)[..., : n - late]
    index, _ = best("infinipot_v", by_time, int(share * max(budget - late, 0)))
    chosen = torch.zeros(*by_time.shape[:2], n - late + 1, dtype=torch.bool, device=k.device)
    chosen.scatter_(-1, torch.where(index < 0, n - late, index).long(), True)
    s = values(v, pool=pool)
    s = torch.cat([s[..., : n - late].masked_fill(chosen[..., :-1], torch.inf), s[..., n - late :]],
                  -1)  # fmt: skip
    return best("infinipot_v", s, budget, last=late)
