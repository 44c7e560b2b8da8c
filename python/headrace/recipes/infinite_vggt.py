# SPDX-License-Identifier: Apache-2.0
"""InfiniteVGGT: the first frame for ever, of the rest the keys least like the mean direction.

Yuan et al., arXiv 2601.02281, and its code: layers whose keys differ more get more of the total.
"""

from __future__ import annotations

from torch import Tensor

from .common import Kept, best, likeness, summary, whole_number


def score(k: Tensor, anchor: int) -> Tensor:
    """fp32 [B, Hkv, N]: likeness of every key with the mean of the unit keys behind the anchor.

    k [B, Hkv, N, D]; anchor: tokens of the first frame. A key of length 0 scores 0.
    """
    whole_number("infinite_vggt", "anchor", anchor, 0)
    unit = summary(k, 0, ("unit",), skip=anchor)["unit"]
    return likeness(k, unit / max(k.shape[2] - anchor, 1))


def keep(k: Tensor, budget: int, anchor: int) -> Kept:
    """The anchor and the least alike others, `budget` in all (more only where the anchor is)."""
    first = min(anchor, k.shape[2])
    return best("infinite_vggt", score(k, anchor), budget, first=first, lowest=True)


def layer_budgets(scores: Tensor, total: int, *, temperature: float = 0.5) -> Tensor:
    """Tokens of each layer, int64 [L], by the mean score of its candidates [L]; rounded down."""
    return (((1 - scores.double()) / temperature).softmax(0) * total).long()
