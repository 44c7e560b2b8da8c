# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.attention.spec import ATTENTION
from .registry import register


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    sinks: int = 0,
    sink_logits: Tensor | None = None,
    block_mask: Tensor | None = None,
    block_size: int = 64,
    causal: bool = True,
    scale: float | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over contiguous keys, in the layout of torch's scaled_dot_product_attention.

    q [B, Hq, Lq, D], k and v [B, Hkv, Lk, D] (fp32, bf16 or fp16; Hkv divides Hq; D a multiple of
    16 up to 256), aligned at the bottom right: query i stands at t = i + Lk - Lq. It sees key j iff
    (j <= t, when causal) and (j < sinks, or (t - window < j < t + window and its block is set)).

    window: counts the query itself; None: no window. block_mask: bool
    [B or 1, Hq or 1, ceil(Lq / block_size), ceil(Lk / block_size)], True where queries of block
    i // block_size see keys of block j // block_size (pooled_block_mask makes one); None: all. It
    hides no sink. Where query heads share a mask (its second axis is 1), those of one kv head read
    keys and values together. Positions are the caller's: q and k come rotated. sink_logits fp32
    [Hq]: a learned term exp(b) in the denominator. softcap c > 0 maps logits x to c tanh(x / c).
    scale defaults to D ** -0.5.

    Gives o [B, Hq, Lq, D], and with return_lse also lse fp32 [B, Hq, Lq] (natural logarithm,
    without the learned sink). A row that sees nothing gives 0 and -inf. Only tiles of keys that
    some row sees are read, and what a row does not see never reaches it (on the CPU; see the Triton
    kernels for NaN there). Raises TypeError, ValueError or NotImplementedError naming the argument.
    """
    o, lse = _way()(
        q, k, v, window, sinks, sink_logits, causal, scale, softcap, block_mask, block_size,
    )  # fmt: skip
    return (o, lse) if return_lse else o


_way = register(ATTENTION)
