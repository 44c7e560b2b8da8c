# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.attention.spec import MERGE_STATES
from .registry import register


def merge_states(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The attention state over the union of two disjoint sets of keys.

    o_a, o_b [T, H, D] (fp32, bf16 or fp16); lse_a, lse_b [T, H] fp32, natural logarithm, without a
    learned sink. Gives (o, lse) of the same shapes. The identity is (anything, -inf); the operation
    commutes and associates to rounding. Raises TypeError or ValueError naming the argument.
    Source: FlashInfer (2025), with base e instead of 2.
    """
    return _way()(o_a, lse_a, o_b, lse_b)


_way = register(MERGE_STATES)
