# SPDX-License-Identifier: Apache-2.0
"""ChunkKV: whole chunks of tokens, so that what belongs together stays or goes together.

Liu et al., arXiv 2502.00299; chunks of 20, scores of all heads added, as in kvpress (the paper
also measures 10), and reused by any number of layers that follow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import Kept, best, whole_number


def score(token_score: Tensor, *, chunk: int = 20) -> Tensor:
    """fp32 [B, 1, M]: mean over the tokens of each chunk of the sum over heads of [B, H, N]."""
    whole_number("chunk_kv", "chunk", chunk, 1)
    n = token_score.shape[-1]
    s = token_score.float().sum(1, keepdim=True)
    count = F.pad(torch.ones(n, device=s.device), (0, -n % chunk)).view(-1, chunk).sum(-1)
    return F.pad(s, (0, -n % chunk)).unflatten(-1, (-1, chunk)).sum(-1) / count


def keep(token_score: Tensor, budget: int, *, chunk: int = 20) -> Kept:
    """Tokens of the best budget // chunk chunks (one at least, if the budget is above 0).

    Indices [B, 1, K] of tokens for every head; the last chunk may be short.
    """
    whole_number("chunk_kv", "chunk", chunk, 1)
    n = token_score.shape[-1]
    chunks = max(budget // chunk, 1) if budget > 0 else budget
    index, _ = best("chunk_kv", score(token_score, chunk=chunk), chunks)
    at = index[..., None] * chunk + torch.arange(chunk, device=index.device)
    at = torch.where((index[..., None] >= 0) & (at < n), at, -1).flatten(-2)
    return at[..., :n].int(), (at >= 0).sum(-1).int()
