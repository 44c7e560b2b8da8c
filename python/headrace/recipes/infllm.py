# SPDX-License-Identifier: Apache-2.0
"""InfLLM: blocks by a few tokens of theirs that were looked at most while they were near.

Xiao et al., arXiv 2402.04617: blocks of 128, 4 representative tokens each, whose mean stands for
the block; 16 blocks are recalled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .common import Kept, best, gather, whole_number


def representatives(k: Tensor, received: Tensor, *, block: int = 128, count: int = 4) -> Tensor:
    """fp32 [B, Hkv, M, D]: mean of the `count` keys of each block that received most.

    k [B, Hkv, N, D]; received [B, Hkv, N] such as h2o.score gives.
    """
    whole_number("infllm", "block", block, 1)
    whole_number("infllm", "count", count, 1)
    batch, heads, n, dim = k.shape
    blocks = -(-n // block)
    if not blocks:
        return k.new_zeros(batch, heads, 0, dim, dtype=torch.float32)
    s = F.pad(received, (0, blocks * block - n), value=-torch.inf).view(batch, -1, block)
    index, chosen = ops.select(s, k=count)
    inside = torch.arange(index.shape[-1], device=k.device) < chosen[..., None]
    start = torch.arange(heads * blocks, device=k.device) % blocks * block
    at = (index + start[:, None]).clamp(0, n - 1).view(batch, heads, -1)
    rows = gather(k.float(), at).view(batch, heads, blocks, -1, dim)
    inside = inside.view(batch, heads, blocks, -1, 1)
    return torch.where(inside, rows, 0.0).sum(3) / chosen.view(batch, heads, blocks, 1).clamp(min=1)


def score(q: Tensor, rep: Tensor, *, blocks: Tensor | None = None) -> Tensor:
    """fp32 [B, 1, M]: mean over heads and queries of q [B, Hq, W, D] times representative."""
    return ops.block_score(q, rep, scale=1 / q.shape[1], lengths=blocks)


def keep(scores: Tensor, budget: int = 16, *, blocks: Tensor | None = None) -> Kept:
    """The `budget` best blocks, ascending."""
    return best("infllm", scores, budget, lengths=blocks)
