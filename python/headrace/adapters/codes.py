# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor

from ..errors import bad_value


def quantize_rows(weights: Tensor, bits: int, group: int = 64) -> tuple[Tensor, Tensor]:
    """Codes and scales of weights [..., n] for a pool: int8, or uint8 pairs of 4-bit codes.

    Symmetric, one fp32 scale for `group` neighbours (a divisor of n; for 4 bits a multiple of 32),
    rounded to nearest: a weight is off by half a scale at most. Gives (codes [..., n] or [..., n /
    2], scales [..., n / group]). Raises ValueError for other sizes and for weights not finite.
    """
    if bits not in (4, 8):
        raise bad_value("quantize_rows", "bits", "4 or 8", bits)
    n = weights.shape[-1]
    if group < 1 or n % group or (bits == 4 and group % 32):
        raise bad_value("quantize_rows", "group", f"a divisor of {n}, for 4 bits in 32s", group)
    if not weights.isfinite().all():
        raise bad_value("quantize_rows", "weights", "finite weights", "NaN or infinity")
    top = 2 ** (bits - 1) - 1
    grouped = weights.float().unflatten(-1, (-1, group))
    scales = grouped.abs().amax(-1) / top
    codes = (grouped / torch.where(scales > 0, scales, 1.0)[..., None]).round().clamp(-top, top)
    codes = codes.flatten(-2).to(torch.int8)
    if bits == 8:
        return codes, scales
    pairs = (codes + 8).to(torch.uint8).unflatten(-1, (-1, 2, 16))
    return (pairs[..., 0, :] | pairs[..., 1, :] << 4).flatten(-2), scales
