# SPDX-License-Identifier: Apache-2.0
"""Decoding over pages and prefill under a window, as a benchmark measures them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..memory import PagePool
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
from .flex import compiled_flex
from .peers import Run, compiles

UNLIMITED = 2**62
SPAN = 1024
"""Positions from one origin to the next."""


def decode(
    batch: int,
    cached: int,
    dtype: torch.dtype = torch.bfloat16,
    codes: torch.dtype | None = None,
    dims: Dims = LLAMA_8B,
) -> Case:
    """One query of each stream over `cached` tokens in shuffled pages, re-indexing on.

    With `codes` over pages of that format; the peer is then ours over pages of `dtype`.
    """
    heads, kv_heads, dim = dims.heads, dims.kv_heads, dims.dim
    pages = -(-cached // PAGE)
    k, v = (noise(batch, kv_heads, cached, dim, dtype=dtype) for _ in "kv")
    q = noise(batch, heads, dim, dtype=dtype)
    pool = PagePool(1, batch * pages, kv_heads, dim, PAGE, dtype)
    k_pages, v_pages = pool.k[0], pool.v[0]
    order = torch.randperm(batch * pages).view(batch, pages)
    inv_freq, rows = frequencies(dim), torch.arange(cached)
    entries = [row for b in range(batch) for row in kept(pool, k[b], v[b], order[b], inv_freq)]
    args = (
        q, k_pages, v_pages, torch.tensor(entries),
        torch.arange(0, batch * pages + 1, pages, dtype=torch.int32),
        torch.arange(batch + 1, dtype=torch.int32), torch.full((batch,), cached - 1),
    )  # fmt: skip
    bound, axes = bound_call("paged_attention", *args, inv_freq=inv_freq)
    spec = ops.specs()["paged_attention"]
    group = heads // kv_heads
    q_turned = turned(q.unsqueeze(2), inv_freq, torch.tensor([cached - 1]))
    k_turned = torch.stack([turned(one, inv_freq, rows) for one in k])  # as a stock cache has them

    def check() -> tuple[float, float]:
        # The first stream and the last kv head say it for all, and fp64 stays affordable.
        got, _ = ops.paged_attention(*args, inv_freq=inv_freq)
        one = torch.tensor([0, 1], dtype=torch.int32)
        want, _ = spec.reference(
            q[:1, -group:].double(), k_pages[:, -1:], v_pages[:, -1:], args[3][:pages], one * pages,
            one, args[6][:1], None, inv_freq, dim**-0.5, 0.0, None,
        )  # fmt: skip
        return rms_error(got[:1, -group:], want), spec.tolerance(dtype, axes, bound)

    if codes is not None:
        return _over_codes(args, inv_freq, codes, f"B{batch} {short(cached)} cached")
    return Case(
        "paged_attention",
        f"decode {dtype_name(dtype)} B{batch} {short(cached)} cached",
        lambda: ops.paged_attention(*args, inv_freq=inv_freq),
        check,
        spec.bytes(axes, bound),
        spec.flops(axes, bound),
        lambda: F.scaled_dot_product_attention(q_turned, k_turned, v, enable_gqa=True),
        "torch SDPA",
        {"re-indexing off": lambda: ops.paged_attention(*args)},
        more=partial(decoding, q_turned, k_turned, v),
        product=dtype,
    )


def kept(
    pool: PagePool, k: Tensor, v: Tensor, pages: Tensor, inv_freq: Tensor, start: int = 0
) -> list[list[int]]:
    """Writes k and v [Hkv, T, D], from position `start` on, into these pages; gives the entries."""
    rows = torch.arange(k.shape[1])
    at = start + rows
    # Pages share origins, as a stream's do.
    where = torch.stack([pages[rows // PAGE], rows % PAGE, at - at // SPAN * SPAN], 1)
    ops.append(k.transpose(0, 1), v.transpose(0, 1), pool.k[0], pool.v[0], where, inv_freq=inv_freq)
    entries = []
    for i, page in enumerate(pages.tolist()):
        first, count = start + i * PAGE, min(PAGE, len(rows) - i * PAGE)
        origin = first // SPAN * SPAN
        entries.append([page, 0, count, origin, UNLIMITED, first, UNLIMITED])
    return entries


def turned(x: Tensor, inv_freq: Tensor, at: Tensor) -> Tensor:
    """x [..., T, D] rotated to positions [T], halves together; angles in fp64, the rest in fp32."""
    angle = at[:, None].double() * inv_freq
    a, b = x.float().chunk(2, -1)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def decoding(q: Tensor, k: Tensor, v: Tensor, compile: bool) -> dict[str, Run]:
    """Ways to attend that see the query heads of a group as rows of one head."""
    folded = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # [B, KV, G, D]

    def by_products() -> Tensor:
        p = (folded @ k.mT * q.shape[-1] ** -0.5).float().softmax(-1)
        return p.to(v.dtype) @ v

    runs: dict[str, Run] = {
        "torch SDPA, heads folded": lambda: F.scaled_dot_product_attention(folded, k, v),
        "torch, two products": by_products,
    }
    if compile and compiles():
        runs["FlexAttention, heads folded"] = compiled_flex(folded, k, v)
    return runs


def _over_codes(args: tuple[Tensor, ...], inv_freq: Tensor, codes: torch.dtype, shape: str) -> Case:
    """paged_attention over the same pages as codes, beside itself over the floats."""
    q, k_pages, v_pages, *rest = args
    top = 127 if codes == torch.int8 else 448
    scales: dict[str, Any] = {}
    count, kv_heads, dim, size = k_pages.shape
    pool = PagePool(1, count, kv_heads, dim, size, codes)
    pages = [pool.k[0], pool.v[0]]
    parts = ("k_scale", "v_scale"), (k_pages, v_pages), (2, 3), pages
    for name, x, axis, room in zip(*parts, strict=True):
        scales[name] = x.abs().amax(axis).float().clamp(min=1e-6) / top
        y = x.float().div_(scales[name].unsqueeze(axis))
        room.copy_(y.round_() if codes == torch.int8 else y)
    coded = (q, *pages, *rest)
    # The peer's pages hold what the codes stand for, so that both compute the same.
    floats = [
        (y.float() * scales[name].unsqueeze(axis)).to(q.dtype)
        for y, name, axis in zip(pages, ("k_scale", "v_scale"), (2, 3), strict=True)
    ]
    bound, axes = bound_call("paged_attention", *coded, inv_freq=inv_freq, **scales)
    spec, group = ops.specs()["paged_attention"], q.shape[1] // k_pages.shape[1]
    entries, ends, q_indptr, q_pos = rest

    def check() -> tuple[float, float]:
        got, _ = ops.paged_attention(*coded, inv_freq=inv_freq, **scales)
        want, _ = spec.reference(
            q[:1, -group:].double(), pages[0][:, -1:], pages[1][:, -1:], entries[: int(ends[1])],
            ends[:2], q_indptr[:2], q_pos[:1], None, inv_freq, q.shape[-1] ** -0.5, 0.0, None,
            k_scale=scales["k_scale"][:, -1:], v_scale=scales["v_scale"][:, -1:],
        )  # fmt: skip
        return rms_error(got[:1, -group:], want), spec.tolerance(q.dtype, axes, bound)

    return Case(
        "paged_attention",
        f"decode {dtype_name(codes)} {shape}",
        lambda: ops.paged_attention(*coded, inv_freq=inv_freq, **scales),
        check,
        spec.bytes(axes, bound),
        spec.flops(axes, bound),
        lambda: ops.paged_attention(q, *floats, *rest, inv_freq=inv_freq),
        f"ours, {dtype_name(k_pages.dtype)} pages",
        product=codes if codes == torch.int8 else q.dtype,
    )


def prefill(
    length: int, window: int, dtype: torch.dtype, flex: bool, dims: Dims = LLAMA_8B
) -> Case:
    """Causal prefill under a window with 4 sinks."""
    q = noise(1, dims.heads, length, dims.dim, dtype=dtype)
    k, v = (noise(1, dims.kv_heads, length, dims.dim, dtype=dtype) for _ in "kv")
    bound, axes = bound_call("attention", q, k, v, window=window, sinks=4)
    spec = ops.specs()["attention"]
    last, group = max(0, length - 300), dims.heads // dims.kv_heads

    def check() -> tuple[float, float]:
        got = cast(Tensor, ops.attention(q, k, v, window=window, sinks=4))
        want, _ = spec.reference(
            q[:, :group, last:].double(), k[:, :1].double(), v[:, :1].double(), window, 4, None,
            True, dims.dim**-0.5, 0.0,
        )  # fmt: skip
        return rms_error(got[:, :group, last:], want), spec.tolerance(dtype, axes, bound)

    def more(compile: bool) -> dict[str, Run]:
        runs: dict[str, Run] = {}
        if length <= 4096:  # beyond, a call takes seconds
            runs["torch SDPA, by bands"] = lambda: _banded(q, k, v, window)
            if flex:
                runs["torch SDPA, mask"] = _masked_sdpa(q, k, v, window)
        return runs

    return Case(
        "attention",
        f"prefill {dtype_name(dtype)} {short(length)} window {window} sinks 4",
        lambda: ops.attention(q, k, v, window=window, sinks=4),
        check,
        spec.bytes(axes, bound),
        spec.flops(axes, bound),
        _flex(q, k, v, window) if flex else _masked_sdpa(q, k, v, window),
        "FlexAttention" if flex else "torch SDPA, mask",
        more=more,
        product=dtype,
    )


def _flex(q: Tensor, k: Tensor, v: Tensor, window: int) -> Callable[[], object]:
    def seen(b: Tensor, h: Tensor, t: Tensor, j: Tensor) -> Tensor:
        return (j <= t) & ((t - j < window) | (j < 4))

    return compiled_flex(q, k, v, seen)


def _masked_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int) -> Callable[[], object]:
    t = torch.arange(q.shape[2])
    age = t[:, None] - t[None, :]
    mask = (age >= 0) & ((age < window) | (t[None, :] < 4))
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Queries by the window, over the keys that some of them see; 4 sinks."""
    made = []
    for lo in range(0, q.shape[2], window):
        hi, first = min(lo + window, q.shape[2]), max(0, lo - window + 1)
        keys = torch.arange(first, hi)
        if first:
            keys = torch.cat([torch.arange(min(4, first)), keys])
        age = torch.arange(lo, hi)[:, None] - keys
        mask = (age >= 0) & ((age < window) | (keys < 4))
        part = (q[:, :, lo:hi], k[:, :, keys], v[:, :, keys])
        made.append(F.scaled_dot_product_attention(*part, attn_mask=mask, enable_gqa=True))
    return torch.cat(made, 2)
