# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor, get_num_threads

from .. import _C
from ..kernels.linear.spec import LINEAR
from .registry import DTYPE_CODE, address, call, register


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Matrix product whose bits, row by row, do not depend on how many rows there are.

    x [T, K] and weight [N, K] in fp32, bf16 or fp16 (they may differ), bias [N] in the weight's
    dtype; gives [T, N] in x's dtype, accumulated in fp32. Every output is one dot product added up
    in one fixed order, whatever T is; BLAS picks other orders for other T. Last axes must have
    stride 1. Numpy arrays are taken too and given back. Raises TypeError or ValueError naming the
    argument.
    """
    return call("linear", x, weight, bias)


def _cpu(bound, axes, outs):
    x, weight, (y,) = bound["x"], bound["weight"], outs
    _C.linear(
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        weight.stride(0),
        address(bound["bias"]),
        y.data_ptr(),
        (axes["T"], axes["N"], axes["K"]),
        DTYPE_CODE[x.dtype],
        DTYPE_CODE[weight.dtype],
        get_num_threads(),
    )


register(LINEAR, _cpu)
