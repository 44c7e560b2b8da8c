# SPDX-License-Identifier: Apache-2.0
"""The peer FlexAttention, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    from torch.nn.attention.flex_attention import flex_attention

    inductor.compile_threads = 1  # a pool of compilers would start beside the first timings
    mask = None if seen is None else block_mask(seen, heads, q.shape[2], block)
    torch._dynamo.reset()  # past eight shapes it would run uncompiled
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def block_mask(seen: Callable[..., Tensor], heads: int | None, length: int, block: int) -> Any:
    """What torch's create_block_mask makes for `length` queries and keys, from a row of blocks at a
    time: it takes the elements of all at once, gigabytes of a long prompt.
    """
    from torch.nn.attention.flex_attention import BlockMask

    blocks = -(-length // block)
    count = torch.zeros(1, heads or 1, blocks, blocks, dtype=torch.int64)
    zero, j = torch.tensor(0), torch.arange(length)
    for head in range(heads or 1):
        for row in range(blocks):
            t = torch.arange(row * block, min((row + 1) * block, length))[:, None]
            shown = seen(zero, torch.tensor(head), t, j).expand(len(t), length).sum(0)
            count[0, head, row].index_add_(0, j // block, shown)
    full = count == block * block

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        order = chosen.int().argsort(dim=-1, descending=True, stable=True)
        return chosen.sum(-1, dtype=torch.int32), order.int()

    return BlockMask.from_kv_blocks(
        *listed((count > 0) & ~full), *listed(full),
        BLOCK_SIZE=block, mask_mod=seen, seq_lengths=(length, length),
    )  # fmt: skip
