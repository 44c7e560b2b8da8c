# SPDX-License-Identifier: Apache-2.0
"""KeyDiff: keys that differ most from the mean direction of all keys of their head.

Park et al., arXiv 2504.15364. A key of length 0 has cosine 0. No token is safe.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .common import Kept, best, likeness, summary


def score(k: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """fp32 [B, Hkv, N]: less the cosine of every key of k [B, Hkv, N, D] with the mean unit key."""
    anchor = summary(k, 0, ("unit",), lengths)["unit"]
    return -likeness(k, torch.nn.functional.normalize(anchor, dim=-1))


def keep(k: Tensor, budget: int, *, lengths: Tensor | None = None) -> Kept:
    """The `budget` keys that are least like the others."""
    return best("key_diff", score(k, lengths=lengths), budget, lengths=lengths)
