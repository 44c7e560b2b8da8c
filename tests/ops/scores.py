# SPDX-License-Identifier: Apache-2.0
"""Valid arguments of the ops that score and select; whatever they must not read is NaN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.ops.samples import Call, normal, rng, strided

POLICIES = ("top_k", "threshold", "share", "mass", "otsu", "quota", "flat")
HEADS = ("each", "group", "group_max", "sum", "max")
QUERIES = ("mean", "sum", "max")


def integers(gen: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, max(high, low + 1), shape, generator=gen, dtype=torch.int32)


def scores(
    seed: int, batch: int, heads: int, size: int, values: str = "normal", dtype=torch.float32
) -> Tensor:
    """[batch, heads, size]: `ties` has few different values, `odd` NaN, infinities and both 0."""
    gen = rng(seed)
    s = torch.randn(batch, heads, size, generator=gen)
    if values != "normal":
        s = (2 * s).round()
    if values == "odd":
        for x in (torch.nan, -torch.inf, torch.inf, 0.0, -0.0):
            s[torch.rand(s.shape, generator=gen) < 0.1] = x
    return s.to(dtype)


def select(
    seed: int,
    batch: int = 2,
    heads: int = 3,
    size: int = 67,
    policy: str = "top_k",
    values: str = "normal",
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    ragged: bool = False,
    ends: bool = False,
    forced: bool = False,
    limit: str = "none",
    **options,
) -> Call:
    """select, its optional tensors as the policy needs them; what lies beyond lengths is NaN."""
    gen = rng(seed + 1000)
    s = scores(seed, batch, heads, size, values, dtype)
    kwargs: dict = {"policy": policy} | options
    if ragged:
        kwargs["lengths"] = integers(gen, 0, size + 1, batch, heads if seed % 2 else 1)
        beyond = torch.arange(size) >= kwargs["lengths"][..., None]
        s = s.masked_fill(beyond, torch.nan)
    if limit == "budget" or (policy in ("top_k", "flat") and limit == "none"):
        rows = 1 if policy == "flat" else heads
        kwargs["budget"] = integers(gen, -1, size + 3, batch if seed % 3 else 1, rows)
    elif limit == "k":
        kwargs["k"] = int(torch.randint(0, size + 3, (), generator=gen))
    if policy == "quota":
        kwargs |= {"buckets": integers(gen, -1, size // 4 + 2, 1, heads, size), "quota": 2}
    if policy == "mass" and seed % 2:
        kwargs["counts"] = 4 * torch.rand(batch, 1, size, generator=gen)
    if ends:
        kwargs |= {"first": 2, "last": 3}
    if forced:
        begin = integers(gen, -2, size, batch, 1, 2, 1)
        kwargs["forced"] = torch.cat([begin, begin + integers(gen, -1, 5, *begin.shape)], -1)
    return (strided(s, layout),), kwargs


def block_score(
    seed: int,
    batch: int = 2,
    kv_heads: int = 2,
    group: int = 2,
    asked: int = 3,
    rows: int = 67,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    key_dtype: torch.dtype | None = None,
    kind: str = "mean",
    layout: str = "plain",
    shared: bool = False,
    ragged: bool = False,
    indexed: int | None = None,
    **options,
) -> Call:
    """block_score over means, `bounds` or `bits`; rows that do not count are NaN (or any bits)."""
    gen = rng(seed)
    stored = 1 if shared else batch
    kwargs: dict = dict(options)
    if kind == "bits":
        q = torch.randint(-(2**31), 2**31, (batch, kv_heads * group, asked, dim), generator=gen)
        k = torch.randint(-(2**31), 2**31, (stored, kv_heads, rows, dim), generator=gen)
        q, keys = q.int(), k.int()
    else:
        q = normal(gen, batch, kv_heads * group, asked, dim, dtype=dtype)
        keys = normal(gen, stored, kv_heads, rows, dim, dtype=key_dtype or dtype)
    used = torch.ones(rows, dtype=torch.bool)
    if indexed is not None:
        kwargs["index"] = integers(gen, -1, rows + 1, 1 if seed % 2 else batch, indexed)
        used = torch.isin(torch.arange(rows), kwargs["index"])
    if ragged:
        count = rows if indexed is None else indexed
        kwargs["lengths"] = integers(gen, 0, count + 1, batch)
        if indexed is None:
            used = torch.arange(rows) < kwargs["lengths"].max()
    if kind != "bits":
        keys[:, :, ~used] = torch.nan
    if kind == "bounds":
        kwargs["upper"] = keys + torch.rand(keys.shape, generator=gen).to(keys.dtype)
    return (layout_of(q, "plain" if layout == "pages" else layout), layout_of(keys, layout)), kwargs


def layout_of(keys: Tensor, layout: str) -> Tensor:
    """Stored rows behind other strides: "pages" puts the heads of a row side by side."""
    if layout == "pages":
        return keys.transpose(1, 2).contiguous().transpose(1, 2)
    if not keys.is_floating_point() and layout in ("rows", "wide"):
        return keys.clone()
    return strided(keys, layout)


SAMPLES: dict[str, list[Callable[[], Call]]] = {
    "select": [
        *(
            lambda i=i, p=p: select(i, policy=p, values=("normal", "ties", "odd")[i % 3])
            for i, p in enumerate(POLICIES)
        ),
        lambda: select(8, policy="share", share=0.3, ragged=True, ends=True, forced=True),
        lambda: select(9, dtype=torch.bfloat16, layout="rows", limit="k", lowest=True),
        lambda: select(10, size=0, policy="threshold"),
    ],
    "block_score": [
        lambda: block_score(1),
        lambda: block_score(2, kind="bounds", heads="group", dtype=torch.bfloat16, ragged=True),
        lambda: block_score(3, kind="bits", dim=2, heads="each", asked=1),
        lambda: block_score(4, block_size=16, layout="pages", asked=5, queries="sum"),
        lambda: block_score(5, indexed=40, shared=True, heads="max", key_dtype=torch.float16),
        lambda: block_score(6, rows=0),
    ],
}
