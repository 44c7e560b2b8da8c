# SPDX-License-Identifier: Apache-2.0
"""Quest: pages by an upper bound of what any of their keys can score.

Tang et al., arXiv 2406.10774: pages of 16 tokens, every query head chooses for itself, the last
page always stays.
"""

from __future__ import annotations

from torch import Tensor

from .. import ops
from .common import Kept, best, summary, whole_number


def bounds(k: Tensor, *, page: int = 16, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Least and largest values [B, Hkv, M, D] of the pages of k [B, Hkv, N, D]."""
    whole_number("quest", "page", page, 1)
    states = summary(k, page, ("low", "high"), lengths)
    return states["low"], states["high"]


def score(q: Tensor, low: Tensor, high: Tensor, *, heads: str = "each",
          pages: Tensor | None = None) -> Tensor:  # fmt: skip
    """fp32 [B, Hq, M] of q [B, Hq, W, D] (the largest over W); heads as in block_score.

    pages (int32 [B]): how many count; the others give -infinity.
    """
    return ops.block_score(q, low, upper=high, heads=heads, queries="max", lengths=pages)


def keep(scores: Tensor, budget: int, *, pages: Tensor | None = None) -> Kept:
    """The last page and the best others, `budget` pages in all."""
    return best("quest", scores, budget, last=1 if budget else 0, lengths=pages)
