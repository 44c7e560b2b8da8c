# SPDX-License-Identifier: Apache-2.0
"""SnapKV: prompt tokens that the last queries look at, smoothed along the prompt.

Li et al., arXiv 2404.14469; the authors' code has a window of 32 and average pooling over 5. With
grouped queries the heads of a kv head are averaged, as in kvpress (whose window is 64).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .common import Kept, best


def score(
    q: Tensor,
    k: Tensor,
    *,
    window: int = 32,
    pool: int = 5,
    pooling: str = "mean",
    lengths: Tensor | None = None,
) -> Tensor:
    """fp32 [B, Hkv, N]: of the keys before the window; 0 in it.

    q [B, Hq, W, D]: the last queries, of which `window` at most are used. k [B, Hkv, N, D].
    """
    q = q[:, :, max(0, q.shape[2] - window) :]
    asked = q.shape[2]
    mass = ops.attention_mass(q, k, exclude=asked, pool=pool, pooling=pooling, lengths=lengths)
    return F.pad(mass, (0, k.shape[2] - mass.shape[2]))


def keep(q: Tensor, k: Tensor, budget: int, *, window: int = 32, lengths: Tensor | None = None,
         pool: int = 5, pooling: str = "mean") -> Kept:  # fmt: skip
    """The window and the best of the rest, `budget` in all (more only where the window is)."""
    s = score(q, k, window=window, pool=pool, pooling=pooling, lengths=lengths)
    return best("snap_kv", s, budget, last=min(window, q.shape[2]), lengths=lengths)
