# SPDX-License-Identifier: Apache-2.0
"""Decoding of streams that have what they begin with in common, as a benchmark measures it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..memory import PagePool
from .attention import decoding, kept, turned
from .case import (
    LLAMA_8B,
    PAGE,
    Case,
    Dims,
    bound_call,
    dtype_name,
    frequencies,
    noise,
    rms_error,
    short,
)  # fmt: skip
from .peers import Run


def shared(
    batch: int, common: int, own: int, dtype: torch.dtype = torch.bfloat16, dims: Dims = LLAMA_8B
) -> Case:
    """One query of each stream over the pages of `common` tokens that all have, and over `own` of
    its own. The peer is the same call where every stream has all of its pages for itself."""
    heads, kv_heads, dim, inv_freq = dims.heads, dims.kv_heads, dims.dim, frequencies(dims.dim)
    first, each, cached = -(-common // PAGE), -(-own // PAGE), common + own
    per = first + each
    q = noise(batch, heads, dim, dtype=dtype)
    k_common, v_common = (noise(kv_heads, common, dim, dtype=dtype) for _ in "kv")
    k_own, v_own = (noise(batch, kv_heads, own, dim, dtype=dtype) for _ in "kv")
    pool = PagePool(1, first + batch * each, kv_heads, dim, PAGE, dtype)
    order = torch.randperm(first + batch * each)
    begin = kept(pool, k_common, v_common, order[:first], inv_freq)
    entries = []
    for b, mine in enumerate(order[first:].view(batch, each)):
        entries += begin + kept(pool, k_own[b], v_own[b], mine, inv_freq, common)
    rows = torch.tensor(entries)
    lists, streams = (torch.arange(batch + 1, dtype=torch.int32) * n for n in (per, 1))
    rest = (lists, streams, torch.full((batch,), cached - 1))
    args = (q, pool.k[0], pool.v[0], rows, *rest)
    alone = (q, *copied(pool, rows), *rest)
    bound, axes = bound_call("paged_attention", *args, inv_freq=inv_freq)
    spec, group = ops.specs()["paged_attention"], dims.group

    def check() -> tuple[float, float]:
        # The last stream and the last kv head; the peer, which shares nothing, is held to all.
        got, _ = ops.paged_attention(*args, inv_freq=inv_freq)
        want, _ = spec.reference(
            q[-1:, -group:].double(), pool.k[0][:, -1:], pool.v[0][:, -1:], rows[-per:], lists[:2],
            streams[:2], rest[-1][-1:], None, inv_freq, dim**-0.5, 0.0, None,
        )  # fmt: skip
        return rms_error(got[-1:, -group:], want), spec.tolerance(dtype, axes, bound)

    def gathered(compile: bool) -> dict[str, Run]:
        """Over the keys of each stream in a row, turned as a stock cache has them."""
        many = (batch, kv_heads, common, dim)
        k = torch.cat([k_common.expand(many), k_own], 2)
        k = torch.stack([turned(one, inv_freq, torch.arange(cached)) for one in k])
        v = torch.cat([v_common.expand(many), v_own], 2)
        q_turned = turned(q.unsqueeze(2), inv_freq, torch.tensor([cached - 1]))
        plain = {
            "torch SDPA": lambda: F.scaled_dot_product_attention(q_turned, k, v, enable_gqa=True)
        }
        return plain | decoding(q_turned, k, v, compile)

    return Case(
        "paged_attention",
        f"shared prefix {dtype_name(dtype)} B{batch} {short(common)} + {short(own)} cached",
        lambda: ops.paged_attention(*args, inv_freq=inv_freq),
        check,
        spec.bytes(axes, bound),
        spec.flops(axes, bound),
        lambda: ops.paged_attention(*alone, inv_freq=inv_freq),
        "ours, nothing shared",
        more=gathered,
        product=dtype,
    )


def copied(pool: PagePool, entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pages of keys and values in which every entry has one of its own, and the entries."""
    count, heads, dim, size = len(entries), *pool.k.shape[2:]
    copy, places = PagePool(1, count, heads, dim, size, pool.k.dtype), torch.randperm(count)
    copy.k[0][places], copy.v[0][places] = pool.k[0][entries[:, 0]], pool.v[0][entries[:, 0]]
    moved = entries.clone()
    moved[:, 0] = places
    return copy.k[0], copy.v[0], moved
