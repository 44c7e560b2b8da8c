# SPDX-License-Identifier: Apache-2.0
"""The peer FlexAttention, compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def compiled_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Callable[..., Tensor] | None = None,
    *,
    heads: int | None = None,
    block: int = 128,
) -> Callable[[], object]:
    """Compiled FlexAttention over q, k, v, `seen(b, h, t, j)` telling which key j a query t sees;
    without it every query sees them all.

    heads: query heads over which the mask differs, None if it does not.
    block: rows and columns of a block of the mask.
    """
    import torch._inductor.config as inductor
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    inductor.compile_threads = 1  # a pool of compilers would start beside the first timings
    mask = None
    if seen is not None:
        length = q.shape[2]
        mask = create_block_mask(
            seen, 1 if heads else None, heads, length, length, device="cpu", BLOCK_SIZE=block
        )
    torch._dynamo.reset()  # past eight shapes it would run uncompiled
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)
