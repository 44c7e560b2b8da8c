# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention, and the masks for it, over the shapes that a benchmark measures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .case import Case, Dims, bound_call, dtype_name, rms_error, short
from .flex import compiled_flex
from .peers import compiled

SMALL, SIZE, SHARE = Dims(8, 2), 64, 0.2


def sparse(length: int, causal: bool, dtype: torch.dtype, flex: bool, dims: Dims = SMALL) -> Case:
    """A fifth of the blocks of every head; beside it our dense attention of the same call."""
    q = torch.randn(1, dims.heads, length, dims.dim).to(dtype)
    k, v = (torch.randn(1, dims.kv_heads, length, dims.dim).to(dtype) for _ in "kv")
    mask = ops.pooled_block_mask(q, k, share=SHARE, causal=causal)
    bound, axes = bound_call("attention", q, k, v, block_mask=mask, causal=causal)
    spec = ops.specs()["attention"]
    last, group = max(0, length - 4 * SIZE), dims.group

    def ours() -> object:
        return ops.attention(q, k, v, block_mask=mask, causal=causal)

    def check() -> tuple[float, float]:
        want, _ = spec.reference(
            q[:, :group, last:].double(), k[:, :1].double(), v[:, :1].double(), None, 0, None,
            causal, dims.dim**-0.5, 0.0, mask[:, :group, last // SIZE :], SIZE,
        )  # fmt: skip
        got = cast(Tensor, ours())[:, :group, last:]
        return rms_error(got, want), spec.tolerance(dtype, axes, bound)

    peers = {"torch SDPA, mask": _masked_sdpa(q, k, v, mask, causal)}
    if flex:
        peers["FlexAttention"] = compiled_flex(
            q, k, v, _seen(mask, causal), heads=dims.heads, block=SIZE
        )
    name, peer = peers.popitem()
    return Case(
        "attention",
        f"blocks {dtype_name(dtype)} {short(length)} {'causal' if causal else 'full'} {SHARE:.0%}",
        ours,
        check,
        spec.bytes(axes, bound),
        spec.flops(axes, bound),
        peer,
        name,
        {"dense": lambda: ops.attention(q, k, v, causal=causal)},
        peers,
        product=dtype,
    )


def pooled_block_mask(length: int, dtype: torch.dtype, dims: Dims = SMALL) -> Case:
    """The mask of a causal prefill; the peer pools, multiplies and picks in torch."""
    heads, kv_heads, dim = dims.heads, dims.kv_heads, dims.dim
    q = torch.randn(1, heads, length, dim).to(dtype)
    k = torch.randn(1, kv_heads, length, dim).to(dtype)
    bound, axes = bound_call("pooled_block_mask", q, k)
    spec = ops.specs()["pooled_block_mask"]
    blocks = length // SIZE
    i = torch.arange(blocks)
    count = (SHARE * (i + 1.0) + 0.5).long().clamp(min=1)[:, None]
    most = int(count[-1])

    def scores(q: Tensor, k: Tensor) -> Tensor:
        a = q.view(1, heads, blocks, SIZE, dim).mean(3)
        b = k.view(1, kv_heads, blocks, SIZE, dim).mean(3)
        b = (b - b.mean(2, True)).repeat_interleave(dims.group, 1)
        return a @ b.mT

    def folded() -> Tensor:
        a = q.view(1, kv_heads, -1, SIZE, dim).mean(3)  # the heads of a group, one after another
        b = k.view(1, kv_heads, blocks, SIZE, dim).mean(3)
        return chosen((a @ (b - b.mean(2, True)).mT).view(1, heads, blocks, blocks))

    def chosen(score: Tensor) -> Tensor:
        score = score.masked_fill(i > i[:, None], -torch.inf)
        order = score.topk(most, -1).indices
        kept = (torch.arange(order.shape[-1]) < count).expand(order.shape)
        return torch.zeros(score.shape, dtype=torch.bool).scatter(-1, order, kept)

    def worth(run: Callable[[], Tensor]) -> Tensor:
        """Exact scores of the blocks chosen, in all: which of two near ones it is goes with the
        rounding."""
        exact = scores(q.double(), k.double())
        picked = run()
        return torch.cat([(exact * picked).sum(-1), picked.sum(-1).double()])

    def peer() -> Tensor:
        return chosen(scores(q, k))

    def check() -> tuple[float, float]:
        want = spec.reference(q.double(), k.double(), SHARE, None, SIZE, None, 0, 0, True)
        got = ops.pooled_block_mask(q, k)
        same = torch.equal(got.sum(-1), want.sum(-1))
        # Scores closer than fp32 can tell may swap; those are few.
        return (float((got != want).double().mean()) if same else torch.inf), 1e-3

    results = {
        "ours": partial(worth, lambda: ops.pooled_block_mask(q, k)),
        "torch, eager": partial(worth, peer),
        "torch, heads folded": partial(worth, folded),
    }

    def more(compile: bool) -> dict[str, Callable[[], object]]:
        made = compiled(peer) if compile else {}
        results.update({name: partial(worth, run) for name, run in made.items()})
        return made

    return Case(
        "pooled_block_mask", f"{dtype_name(dtype)} {short(length)}",
        lambda: ops.pooled_block_mask(q, k), check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch, eager",
        rivals={"torch, heads folded": folded}, more=more, results=results,
    )  # fmt: skip


def _seen(mask: Tensor, causal: bool) -> Callable[..., Tensor]:
    def seen(b: Tensor, h: Tensor, t: Tensor, j: Tensor) -> Tensor:
        shown = mask[b, h, t // SIZE, j // SIZE]
        return shown & (j <= t) if causal else shown

    return seen


def _masked_sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool
) -> Callable[[], object]:
    wide = mask.repeat_interleave(SIZE, 2).repeat_interleave(SIZE, 3)
    if causal:
        wide.logical_and_(torch.ones(wide.shape[2:], dtype=torch.bool).tril())
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=wide, enable_gqa=True)
