# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.linear.spec import LINEAR
from .registry import register


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Matrix product whose bits, row by row, do not depend on how many rows there are.

    x [T, K] and weight [N, K] in fp32, bf16 or fp16 (they may differ), bias [N] in the weight's
    dtype; gives [T, N] in x's dtype, accumulated in fp32. Every output is one dot product added up
    in one fixed order, whatever T is; BLAS picks other orders for other T. Last axes must have
    stride 1. Numpy arrays are taken too and given back. Raises TypeError or ValueError naming the
    argument.
    """
    return _way()(x, weight, bias)


_way = register(LINEAR)
