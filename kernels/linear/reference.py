# SPDX-License-Identifier: Apache-2.0
"""What linear means, in plain torch. Computes in fp64 when the inputs are, else in fp32."""

from __future__ import annotations

import torch


def linear(x, weight, bias):
    """x [T, K] times weight [N, K] transposed, plus bias [N]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = x.to(dtype) @ weight.to(dtype).mT
    return (y if bias is None else y + bias.to(dtype)).to(x.dtype)
