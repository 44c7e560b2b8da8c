# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from .. import _C
from ..errors import bad_type
from ..kernels.lora.spec import LORA
from .registry import register


def lora(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    scale: Tensor,
    y: Tensor | None = None,
    *,
    ranks: Tensor | None = None,
    exact: bool = True,
) -> Tensor:
    """Adds to every row of y the low-rank update of that row's adapter: y += scale (x A^T) B^T.

    x [T, K]; a [S, R, K] and b [S, N, R] stack the adapters in PEFT's orientation, in fp32, bf16
    or fp16 whatever x's dtype; slots int32 [T] names each row's adapter, -1 none; scale fp32 [S]
    (lora_alpha / r, or / sqrt(r) for rsLoRA); ranks int32 [S]: values beyond a slot's rank are
    never read. y [T, N] in x's dtype is accumulated into, in place, and returned; None starts from
    zeros. Rows with -1 keep their bits. The bridge between the halves is fp32 (two bf16 on a CPU
    that multiplies bf16 in pairs, where all is bf16: docs/numerics.md), and y is rounded once; a
    row's bits do not depend on the other rows or adapters, nor on the number of threads. With
    exact=False they may: many bf16 rows of one adapter of a large rank go to two products of torch
    where these are quicker (CPUs that multiply bf16 in pairs), whose bridge is rounded to bf16.
    Raises TypeError or ValueError naming the argument, before anything is written. A GPU looks at
    values in debug mode alone: there a slot that is none counts as -1, a rank too large as R.

    Source: Punica (Chen et al., 2023), S-LoRA (Sheng et al., 2023).
    """
    if y is None:
        for name, value in (("x", x), ("b", b)):
            if not isinstance(value, Tensor | np.ndarray):
                raise bad_type("lora", name, "a tensor", type(value).__name__)
        shape = (x.shape[0], b.shape[1] if b.ndim > 1 else 0)
        y = np.zeros(shape, x.dtype) if isinstance(x, np.ndarray) else x.new_zeros(shape)
    alone = None if exact else _alone(x, a, b, slots, scale, y, ranks)
    if alone is None:
        _way()(x, a, b, slots, scale, y, ranks)
    else:
        slot, rank = alone
        y.addmm_(x @ a[slot, :rank].mT, b[slot, :, :rank].mT, alpha=float(scale[slot]))
    return y


QUICKER = (32, 8192)
"""The rank, and rows times rank, from which on two products of torch are quicker than the op."""


def _alone(
    x: Tensor, a: Tensor, b: Tensor, slots: Tensor, scale: Tensor, y: Tensor, ranks: Tensor | None
) -> tuple[int, int] | None:
    """Slot and rank of the adapter of all rows where these are better left to torch; None as well
    where the rows are not for the op."""
    if is_dynamo_compiling() or _C.active_isa() != "avx512_bf16":
        return None
    for value in (x, a, b, y):
        if type(value) not in _PLAIN or value.dtype is not torch.bfloat16 or not value.is_cpu:
            return None
    try:
        _way()(x[:0], a, b, slots[:0], scale, y[:0], ranks)
    except (TypeError, ValueError):  # which the op tells of all rows
        return None
    if not len(x) == len(slots) == len(y) > 0:
        return None
    several = slots.numpy()
    slot = int(several[0])
    if not 0 <= slot < len(a) or not (several == slot).all():
        return None
    rank = a.shape[1] if ranks is None else int(ranks[slot])
    if rank > a.shape[1] or rank < QUICKER[0] or rank * len(slots) < QUICKER[1]:
        return None
    return slot, rank


_PLAIN = (Tensor, Parameter)
_way = register(LORA)
