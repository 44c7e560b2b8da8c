# SPDX-License-Identifier: Apache-2.0
"""TOVA: what the newest token looks at, the same tokens in all heads of a layer.

Oren et al., arXiv 2401.06104. No token is safe, neither the first nor the last.
"""

from __future__ import annotations

from torch import Tensor

from .. import ops
from .common import Kept, best


def score(q: Tensor, k: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """fp32 [B, 1, N]: attention of the last of q [B, Hq, W, D], averaged over all heads."""
    return ops.attention_mass(q[:, :, -1:], k, lengths=lengths).mean(1, keepdim=True)


def keep(q: Tensor, k: Tensor, budget: int, *, lengths: Tensor | None = None) -> Kept:
    """The `budget` tokens that get most; indices [B, 1, K] for every head."""
    return best("tova", score(q, k, lengths=lengths), budget, lengths=lengths)
