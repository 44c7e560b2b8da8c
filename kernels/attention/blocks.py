# SPDX-License-Identifier: Apache-2.0
"""What the backends of block-sparse attention share."""

from __future__ import annotations

from torch import Tensor


def mask_strides(mask: Tensor | None) -> tuple[int, int, int, int]:
    """Strides of a block mask in elements, 0 along an axis of 1 that stands for all."""
    if mask is None:
        return (0, 0, 0, 0)
    batch, head, row, col = mask.stride()
    return (batch if mask.shape[0] > 1 else 0, head if mask.shape[1] > 1 else 0, row, col)
