# SPDX-License-Identifier: Apache-2.0
"""Knorm: keys of small norm, which get most attention.

Devoto et al., arXiv 2406.11430.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .common import Kept, best


def score(k: Tensor) -> Tensor:
    """fp32 [B, Hkv, N]: less the norm of every key of k [B, Hkv, N, D]."""
    return -torch.linalg.vector_norm(k, dim=-1, dtype=torch.float32)


def keep(k: Tensor, budget: int, *, lengths: Tensor | None = None) -> Kept:
    """The `budget` shortest keys."""
    return best("knorm", score(k), budget, lengths=lengths)
