# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.pooled_block_mask.spec import POOLED_BLOCK_MASK
from .registry import register


def pooled_block_mask(
    q: Tensor,
    k: Tensor,
    *,
    share: float = 0.2,
    blocks: int | None = None,
    block_size: int = 64,
    window: int | None = None,
    sinks: int = 0,
    local: int = 0,
    causal: bool = True,
) -> Tensor:
    """A block mask for `attention`: every block of queries keeps the key blocks that score best.

    q [B, Hq, Lq, D] and k [B, Hkv, Lk, D] (fp32, bf16 or fp16; Hkv divides Hq; D a multiple of 16
    up to 256), aligned at the bottom right as in `attention`. The score of two blocks of
    `block_size` tokens is the product of the mean of the queries and the mean of the keys, these
    less the mean of all (finite) block means of their head; computed in fp32, NaN counts as
    -infinity.

    Of its candidates, the blocks of which `causal` and `window` show at least one key to one of its
    queries, a query block keeps `blocks`, or else `share` of them rounded to the nearest, at least
    one. Equal scores go to the lower index. Always kept, first of that number and beyond it if they
    are more: blocks that hold one of the first `sinks` keys (whatever the window says), and
    candidates that hold a key less than `local` tokens from a query of the block.

    Gives bool [B, Hq, ceil(Lq / block_size), ceil(Lk / block_size)]. Numpy arrays are taken too and
    given back. Raises TypeError, ValueError or NotImplementedError naming the argument. Source: SLA
    (Zhang et al., 2025), as Hybrid Forcing uses it.
    """
    return _way()(q, k, share, blocks, block_size, window, sinks, local, causal)


_way = register(POOLED_BLOCK_MASK)
