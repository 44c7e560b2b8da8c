# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, get_num_threads, is_grad_enabled

from .. import _C
from ..errors import bad_type
from ..kernels.lora.spec import LORA
from .registry import DTYPE_CODE, address, call, direct, register, wrote

POOL_CODE = {**DTYPE_CODE, torch.int8: 3, torch.uint8: 4}


def lora(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    scale: Tensor,
    y: Tensor | None = None,
    *,
    ranks: Tensor | None = None,
) -> Tensor:
    """Adds to every row of y the low-rank update of that row's adapter: y += scale (x A^T) B^T.

    x [T, K]; a [S, R, K] and b [S, N, R] stack the adapters in PEFT's orientation, in fp32, bf16
    or fp16 whatever x's dtype; slots int32 [T] names each row's adapter, -1 none; scale fp32 [S]
    (lora_alpha / r, or / sqrt(r) for rsLoRA); ranks int32 [S]: values beyond a slot's rank are
    never read. y [T, N] in x's dtype is accumulated into, in place, and returned; None starts from
    zeros. Rows with -1 keep their bits. The bridge between the halves is fp32 (two bf16 on a CPU
    that multiplies bf16 in pairs, where all is bf16: docs/numerics.md), and y is rounded once; a
    row's bits do not depend on the other rows or adapters, nor on the number of threads.
    Raises TypeError or ValueError naming the argument, before anything is written.

    Source: Punica (Chen et al., 2023), S-LoRA (Sheng et al., 2023).
    """
    if y is None:
        for name, value in (("x", x), ("b", b)):
            if not isinstance(value, Tensor | np.ndarray):
                raise bad_type("lora", name, "a tensor", type(value).__name__)
        shape = (x.shape[0], b.shape[1] if b.ndim > 1 else 0)
        y = np.zeros(shape, x.dtype) if isinstance(x, np.ndarray) else x.new_zeros(shape)
    if ranks is None and direct():
        recorded = is_grad_enabled()
        if _C.lora_plain(x, a, b, slots, scale, y, recorded, get_num_threads()):
            if recorded:
                wrote(y)
            return y
    call("lora", x, a, b, slots, scale, y, ranks=ranks)
    return y


def _stack(bound, axes, outs):
    x, a, b, y = bound["x"], bound["a"], bound["b"], bound["y"]
    pointers = [0] * 17
    pointers[:4] = x.data_ptr(), y.data_ptr(), a.data_ptr(), b.data_ptr()
    pointers[9] = bound["slots"].data_ptr()
    pointers[11] = bound["scale"].data_ptr()
    pointers[14] = address(bound["ranks"])
    slots, rank = axes["S"], axes["R"]
    b_slot, b_col, b_rank = b.stride()
    _C.lora(
        "lora",
        pointers,
        (axes["T"], axes["K"], axes["N"], slots, slots * rank, 0, 1, 1, rank, 0, 0),
        (x.stride(0), y.stride(0), axes["K"], 0, max(rank, 1), b_slot, b_rank, b_col),
        (DTYPE_CODE[x.dtype], POOL_CODE[a.dtype]),
        (1, 1),
        get_num_threads(),
    )


register(LORA, _stack)
