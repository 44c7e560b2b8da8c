# SPDX-License-Identifier: Apache-2.0
"""ReKV: frames of a video by the mean of their keys.

Di et al., arXiv 2503.00540: a block is a frame of 196 tokens, keys before RoPE, a question is the
mean of its queries, one product over all heads, the best 64 blocks in order of time.
"""

from __future__ import annotations

from torch import Tensor

from .. import ops
from .common import Kept, best, summary, whole_number


def means(k: Tensor, *, block: int = 196, lengths: Tensor | None = None) -> Tensor:
    """fp32 [B, Hkv, M, D]: mean key of every block of k [B, Hkv, N, D]; 0 for blocks of nothing."""
    whole_number("rekv", "block", block, 1)
    states = summary(k, block, ("total", "count"), lengths)
    return states["total"] / states["count"].clamp(min=1)[..., None]


def score(q: Tensor, mean: Tensor, *, blocks: Tensor | None = None) -> Tensor:
    """fp32 [B, 1, M] of q [B, Hq, W, D]; blocks (int32 [B]): how many count."""
    return ops.block_score(q, mean, lengths=blocks)


def keep(scores: Tensor, budget: int = 64, *, blocks: Tensor | None = None) -> Kept:
    """The `budget` best blocks, ascending."""
    return best("rekv", scores, budget, lengths=blocks)
