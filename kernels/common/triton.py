# SPDX-License-Identifier: Apache-2.0
"""What the launchers of Triton kernels share. Serves Triton 3.6 to 3.9."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.errors import BackendError

# Read when `triton.jit` decorates, so it holds for the life of the process.
INTERPRETED = bool(triton.knobs.runtime.interpret)

# Floating-point contraction is named, because its default differs between releases of Triton.
FUSION = {"enable_fp_fusion": True}


def on_device(op: str, x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the device of x current for the launches inside.

    Raises BackendError for tensors on the CPU, unless the process runs in Triton's interpreter.
    """
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if not INTERPRETED:
        raise BackendError(
            f"{op}(backend): expected CUDA tensors for backend triton, got {x.device.type}; "
            "TRITON_INTERPRET=1 runs small ones on the CPU"
        )
    return contextlib.nullcontext()


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and at least 16, the least that a dot takes."""
    return max(16, triton.next_power_of_2(n))


def low_precision(*tensors: Tensor) -> bool:
    """Whether all have one 16-bit dtype, so that products of their elements are exact in fp32."""
    first = tensors[0].dtype
    return first != torch.float32 and all(x.dtype == first for x in tensors)


@triton.jit
def product(a, b, LOW: tl.constexpr):
    """a @ b in fp32: on 16-bit operands as they are, else on fp32 operands without tf32."""
    if LOW:
        return tl.dot(a, b)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
