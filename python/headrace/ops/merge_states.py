# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor, get_num_threads, is_grad_enabled

from .. import _C
from ..kernels.attention.spec import MERGE_STATES
from .registry import DTYPE_CODE, call, direct, register


def merge_states(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The attention state over the union of two disjoint sets of keys.

    o_a, o_b [T, H, D] (fp32, bf16 or fp16); lse_a, lse_b [T, H] fp32, natural logarithm, without a
    learned sink. Gives (o, lse) of the same shapes. The identity is (anything, -inf); the operation
    commutes and associates to rounding. Raises TypeError or ValueError naming the argument.
    Source: FlashInfer (2025), with base e instead of 2.
    """
    if type(o_a) is Tensor and type(lse_a) is Tensor and direct():
        o, lse = torch.empty_like(o_a), torch.empty_like(lse_a)
        given = (o_a, lse_a, o_b, lse_b, o, lse)
        if _C.merge_plain(*given, is_grad_enabled(), get_num_threads()):
            return o, lse
    return call("merge_states", o_a, lse_a, o_b, lse_b)


def _cpu(bound, axes, outs):
    o, lse = outs
    _C.merge_states(
        bound["o_a"].data_ptr(),
        bound["lse_a"].data_ptr(),
        bound["o_b"].data_ptr(),
        bound["lse_b"].data_ptr(),
        o.data_ptr(),
        lse.data_ptr(),
        axes["T"] * axes["H"],
        axes["D"],
        DTYPE_CODE[o.dtype],
        get_num_threads(),
    )


register(MERGE_STATES, _cpu)
