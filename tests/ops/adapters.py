# SPDX-License-Identifier: Apache-2.0
"""Valid arguments of the multi-adapter ops; whatever they must not read is NaN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headrace.adapters import quantize_rows
from tests.ops.samples import Call, normal, rng, strided

MIXES = ("uniform", "zipf", "skewed", "identical", "none", "distinct")


def slots_of(gen: torch.Generator, tokens: int, adapters: int, mix: str) -> Tensor:
    """Which adapter each row uses: int32 [tokens], -1 none."""
    if mix == "none" or adapters == 0 or tokens == 0:
        return torch.full((tokens,), -1, dtype=torch.int32)
    if mix == "identical":
        return torch.full((tokens,), adapters - 1, dtype=torch.int32)
    if mix == "distinct":
        return torch.randperm(max(tokens, adapters), generator=gen)[:tokens].int() % adapters
    if mix == "skewed":  # nearly all rows use one
        rare = torch.rand(tokens, generator=gen) < 0.1
        return torch.where(rare, torch.randint(-1, adapters, (tokens,), generator=gen), 0).int()
    if mix == "zipf":
        weights = 1.0 / torch.arange(1, adapters + 1) ** 1.1
        return torch.multinomial(weights, tokens, True, generator=gen).int()
    return torch.randint(-1, adapters, (tokens,), generator=gen, dtype=torch.int32)


def stack(
    seed: int,
    tokens: int = 5,
    depth: int = 67,
    outputs: int = 45,
    adapters: int = 3,
    rank: int = 9,
    mix: str = "uniform",
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
    ranks: bool = True,
    layout: str = "plain",
    trained: bool = True,
) -> Call:
    """lora; `layout` applies to x; trained: B has PEFT's memory order, else rank rows are dense."""
    gen = rng(seed)
    kind = weight_dtype or dtype
    x = strided(normal(gen, tokens, depth, dtype=dtype), layout)
    a = (normal(gen, adapters, rank, depth) / depth**0.5).to(kind)
    b = normal(gen, adapters, outputs, rank).to(kind)
    kwargs = {}
    if ranks:
        own = torch.randint(0, rank + 1, (adapters,), generator=gen, dtype=torch.int32)
        kwargs["ranks"] = own
        for s, r in enumerate(own.tolist()):
            a[s, r:] = torch.nan
            b[s, :, r:] = torch.nan
    if not trained:
        b = b.mT.contiguous().mT
    slots = slots_of(gen, tokens, adapters, mix)
    for s in set(range(adapters)) - set(slots.tolist()):  # nobody's adapter
        a[s], b[s] = torch.nan, torch.nan
    scale = torch.rand(adapters, generator=gen) + 0.5
    y = normal(gen, tokens, outputs, dtype=dtype)
    return (x, a, b, slots, scale, y), kwargs


def pool(
    seed: int,
    tokens: int = 5,
    depth: int = 64,
    widths: tuple[int, ...] = (45,),
    adapters: int = 4,
    rank: int = 9,
    mix: str = "uniform",
    several: int = 1,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
    bits: int | None = None,
    group: int = 32,
    epilogue: str = "",
) -> Call:
    """lora_rows: rank rows of several adapters, shuffled over a pool that is otherwise poisoned.

    widths: columns of each slice; several: adapters a row; bits: codes instead of floats; epilogue:
    any of "bias", "gain", "base" (base_bias).
    """
    gen = rng(seed)
    slices, outputs = len(widths), sum(widths)
    own = torch.randint(0, rank + 1, (adapters,), generator=gen)
    if adapters:
        own[-1] = rank
    indptr = torch.cat([torch.zeros(1), own.cumsum(0)]).int()
    used = int(indptr[-1])
    rows = torch.randperm(used + 5, generator=gen)[:used].int()
    ranks = (torch.rand(adapters, slices, generator=gen) * (own[:, None] + 1)).int()
    ranks = torch.minimum(ranks, own[:, None]).int()
    a = normal(gen, used + 5, slices, depth) / depth**0.5
    b = normal(gen, used + 5, outputs)
    kwargs: dict = {"ranks": ranks}
    if bits:
        a, kwargs["a_scale"] = quantize_rows(a, bits, group)
        b, kwargs["b_scale"] = quantize_rows(b, bits, group)
        poisoned = (kwargs["a_scale"], kwargs["b_scale"])
    else:
        a, b = a.to(weight_dtype or dtype), b.to(weight_dtype or dtype)
        poisoned = (a, b)
    ends = torch.tensor(widths).cumsum(0).int()
    columns = [0, *ends.tolist()]
    idle = torch.ones(used + 5, dtype=torch.bool)
    idle[rows.long()] = False
    for p in poisoned:
        p[idle] = torch.nan
    for s in range(adapters):
        mine = rows[int(indptr[s]) : int(indptr[s + 1])].long()
        for j in range(slices):
            beyond = mine[int(ranks[s, j]) :]
            poisoned[0][beyond, j] = torch.nan
            if not bits:
                b[beyond, columns[j] : columns[j + 1]] = torch.nan
    slots = torch.stack([slots_of(gen, tokens, adapters, mix) for _ in range(several)], 1)
    if several > 1:
        kwargs["weights"] = torch.rand(tokens, several, generator=gen) + 0.5
    if slices > 1:
        kwargs["slice_ends"] = ends
    if epilogue:
        table = torch.full((adapters, 2), -1, dtype=torch.int32)
        if "bias" in epilogue:
            kwargs["bias"] = normal(gen, 3, outputs)
            table[::2, 0] = torch.arange(len(table[::2])) % 3
        if "gain" in epilogue:
            kwargs["gain"] = torch.rand(2, outputs, generator=gen) + 0.5
            table[1::2, 1] = torch.arange(len(table[1::2])) % 2
        if "base" in epilogue:
            kwargs["base_bias"] = normal(gen, outputs)
        kwargs["epilogue"] = table
    scale = torch.rand(adapters, generator=gen) + 0.5
    x, y = normal(gen, tokens, depth, dtype=dtype), normal(gen, tokens, outputs, dtype=dtype)
    return (x, a, b, rows, indptr, slots.contiguous(), scale, y), kwargs


def result(name: str, args: tuple, kwargs: dict) -> Tensor:
    """What the op makes of a copy of y."""
    y = args[-1].clone()
    getattr(torch.ops.headrace, name)(*args[:-1], y, **kwargs)
    return y


SAMPLES: dict[str, list[Callable[[], Call]]] = {
    "lora": [
        lambda: stack(1),
        lambda: stack(2, dtype=torch.bfloat16, layout="rows", ranks=False),
        lambda: stack(3, tokens=0, dtype=torch.float16),
    ],
    "lora_rows": [
        lambda: pool(1),
        lambda: pool(2, widths=(45, 20), several=2, epilogue="bias", dtype=torch.bfloat16),
        lambda: pool(3, widths=(64,), bits=4, tokens=9),
        lambda: pool(4, tokens=0, bits=8, depth=32, widths=(32,), epilogue="gain base"),
    ],
}
