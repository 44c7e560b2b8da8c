# SPDX-License-Identifier: Apache-2.0
"""H2O: heavy hitters by accumulated attention, and as many recent tokens.

Zhang et al., arXiv 2306.14048: half of the budget each. With grouped queries the attention of the
heads of a kv head adds up.
"""

from __future__ import annotations

from torch import Tensor

from .. import ops
from .common import Kept, best


def score(q: Tensor, k: Tensor, past: Tensor | None = None, *, lse: Tensor | None = None,
          decay: float = 1.0, lengths: Tensor | None = None) -> Tensor:  # fmt: skip
    """fp32 [B, Hkv, N]: what keys received from all queries of q [B, Hq, W, D] and before.

    past [B, Hkv, P]: score of the first P keys so far (after an eviction: of those that stayed).
    """
    return ops.attention_mass(
        q, k, lse=lse, past=past, decay=decay, reduce="sum", lengths=lengths
    )  # fmt: skip


def keep(received: Tensor, budget: int, *, lengths: Tensor | None = None) -> Kept:
    """By score [B, Hkv, N]: the newest half of the budget, rounded up, and the best of the rest."""
    return best("h2o", received, budget, last=budget - budget // 2, lengths=lengths)
