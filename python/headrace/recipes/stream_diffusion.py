# SPDX-License-Identifier: Apache-2.0
"""StreamDiffusion: a frame like the last one processed is skipped, by chance.

Kodaira et al., arXiv 2312.12491, and its image filter (github.com/cumulo-autumn/StreamDiffusion):
the chance of a skip is 0 up to a cosine of 0.98 with the last frame that was not skipped and rises
to 1 at a cosine of 1; ten skips at most. `filters.WholeFrame` has no chance in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops


def chance(x: Tensor, reference: Tensor, *, threshold: float = 0.98) -> Tensor:
    """fp32 [B]: of skipping frames x [B, N, ..., D], given those last processed; NaN skips never.

    threshold: cosine; at 1 nothing is ever skipped.
    """
    if threshold >= 1:
        return torch.zeros(len(x), device=x.device)
    rows = [t.reshape(len(t), t.shape[1], -1, t.shape[-1]) for t in (x, reference)]
    near = ops.similarity(rows[0], rows[1], "cos", patch_height=0, patch_width=0).flatten()
    return (1 - (1 - near) / (1 - threshold)).clamp(0, 1).nan_to_num(0.0)


def skip(chances: Tensor, draw: Tensor, skipped: Tensor | None = None, *, most: int = 10) -> Tensor:
    """bool [B]: whether to skip, by draws [B] from 0 to 1 and how many were skipped in a row."""
    made = chances >= draw
    return made if skipped is None else made & (skipped < most)
