# SPDX-License-Identifier: Apache-2.0
"""Valid arguments of every op: views, odd sizes, poison around what may be read."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

UNLIMITED = 2**62
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 256)
PAGE_SIZES = (16, 32, 64, 128)
LENGTHS = (0, 1, 2, 63, 64, 65, 67, 257)

Call = tuple[tuple, dict]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(gen: torch.Generator, *shape: int, dtype=torch.float32) -> Tensor:
    return torch.randn(*shape, generator=gen).to(dtype)


def frequencies(dim: int, rotary: int | None = None, base: float = 10000.0) -> Tensor:
    """RoPE frequencies, fp64 [rotary / 2]."""
    rotary = dim if rotary is None else rotary
    return base ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)


def cover(seed: int, count: int, **axes) -> Iterator[dict]:
    """`count` combinations in which every value of every axis turns up, as evenly as can be."""
    pick = random.Random(seed)
    columns = {}
    for name, values in axes.items():
        column: list = []
        while len(column) < count:
            column += pick.sample(list(values), len(values))
        columns[name] = column[:count]
    for i in range(count):
        yield {name: column[i] for name, column in columns.items()}


def strided(x: Tensor, how: str) -> Tensor:
    """The same values as `x` [A, B, ..., D] behind other strides; what lies between is NaN."""
    if how == "plain":
        return x.clone()
    if how == "swapped":  # the first two axes stored the other way round
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if how == "rows":  # every third row of a larger tensor
        big = x.new_full((3 * x.shape[0] + 2, *x.shape[1:]), torch.nan)
        big[1 : 1 + 3 * x.shape[0] : 3] = x
        return big[1 : 1 + 3 * x.shape[0] : 3]
    if how == "wide":  # part of a wider last axis
        big = x.new_full((*x.shape[:-1], x.shape[-1] + 24), torch.nan)
        big[..., 8 : 8 + x.shape[-1]] = x
        return big[..., 8 : 8 + x.shape[-1]]
    raise ValueError(how)


LAYOUTS = ("plain", "swapped", "rows", "wide")


@dataclass(frozen=True)
class StreamShape:
    """A stream of `length` tokens so far, whose last `rows` are the queries."""

    length: int
    rows: int
    window: int | None = None
    sinks: int = 0
    base: int = 0  # logical position of its first token
    shift: int = 0  # how far the query's order is ahead of its position


def page_pool(gen, count, kv_heads, dim, page_size, dtype, how="plain") -> tuple[Tensor, Tensor]:
    """Pages full of NaN; `how` is plain, or sliced (strided over pages and heads)."""
    if how == "sliced":
        k = torch.full((count + 2, kv_heads + 1, dim, page_size), torch.nan, dtype=dtype)
        v = torch.full((count, 2, kv_heads, page_size, dim), torch.nan, dtype=dtype)
        return k[1:-1, 1:], v[:, 1]
    k = torch.full((count, kv_heads, dim, page_size), torch.nan, dtype=dtype)
    return k, torch.full((count, kv_heads, page_size, dim), torch.nan, dtype=dtype)


def fill(gen, k_pages, v_pages, entries) -> None:
    """Normal values in the slots that entries name; the rest keeps its NaN."""
    _, heads, dim, _ = k_pages.shape
    for page, first, count in {tuple(e[:3]) for e in entries}:
        slots = slice(first, first + count)
        k_pages[page, :, :, slots] = normal(gen, heads, dim, count, dtype=k_pages.dtype)
        v_pages[page, :, slots] = normal(gen, heads, count, dim, dtype=v_pages.dtype)


def view_of(
    stream: StreamShape, free: list[int], page_size: int, pick: random.Random
) -> list[list[int]]:
    """Entries of a stream: capped pinned sinks, then a window that starts inside a page."""
    window = stream.length if stream.window is None else stream.window
    sinks = min(stream.sinks, stream.length)
    oldest = max(sinks, stream.length - stream.rows - window + 1)
    cap = stream.sinks + window - 1 if stream.window is not None else UNLIMITED
    reach = UNLIMITED if stream.window is None else window
    entries = []
    for at in range(0, sinks, page_size):
        entries.append(
            [
                free.pop(),
                0,
                min(page_size, sinks - at),
                stream.base + at,
                cap,
                stream.base + at,
                UNLIMITED,
            ]
        )
    at, first = oldest, pick.randrange(page_size) if oldest < stream.length else 0
    while at < stream.length:
        count = min(page_size - first, stream.length - at)
        origin = stream.base + at - first
        entries.append([free.pop(), first, count, origin, UNLIMITED, stream.base + at, reach])
        at, first = at + count, 0
    return entries


def paged(
    seed: int,
    streams: list[StreamShape],
    *,
    dim: int = 64,
    kv_heads: int = 2,
    group: int = 2,
    page_size: int = 64,
    dtype: torch.dtype = torch.float32,
    page_dtype: torch.dtype | None = None,
    q_layout: str = "plain",
    page_layout: str = "plain",
    rotary: int | None = -1,
    learned: bool = False,
    **kwargs,
) -> Call:
    """paged_attention over a ragged batch; pages lie scattered in a pool, unnamed slots are NaN.

    rotary: -1 turns all dimensions, None none, any other number that many.
    """
    gen, pick = rng(seed), random.Random(seed)
    pages = sum(s.length // page_size + s.sinks // page_size + 4 for s in streams) + 3
    free = list(range(pages))
    pick.shuffle(free)
    views = [view_of(s, free, page_size, pick) for s in streams]
    flat = list(itertools.chain.from_iterable(views))
    k_pages, v_pages = page_pool(
        gen, pages, kv_heads, dim, page_size, page_dtype or dtype, page_layout
    )
    fill(gen, k_pages, v_pages, flat)
    positions = [
        torch.arange(s.base + s.length - s.rows, s.base + s.length, dtype=torch.int64)
        for s in streams
    ]
    q_pos = torch.cat([*positions, torch.empty(0, dtype=torch.int64)])
    q = strided(normal(gen, q_pos.numel(), kv_heads * group, dim, dtype=dtype), q_layout)
    kwargs = dict(kwargs)
    if rotary is not None:
        kwargs["inv_freq"] = frequencies(dim, dim if rotary == -1 else rotary)
    if learned:
        kwargs["sink_logits"] = normal(gen, kv_heads * group)
    args = (
        q,
        k_pages,
        v_pages,
        torch.tensor(flat, dtype=torch.int64).reshape(-1, 7),
        indptr([len(v) for v in views]),
        indptr([s.rows for s in streams]),
        q_pos,
    )
    return args, kwargs


def indptr(counts) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)


def dense(
    seed: int,
    batch: int = 2,
    kv_heads: int = 2,
    group: int = 2,
    q_len: int = 65,
    k_len: int = 65,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    learned: bool = False,
    blocks: str | None = None,
    density: float = 0.4,
    **kwargs,
) -> Call:
    """attention in the layout of scaled_dot_product_attention.

    blocks: the axes along which the block mask differs, of "batch" and "heads"; "" is one for all.
    """
    gen = rng(seed)
    q = normal(gen, batch, kv_heads * group, q_len, dim, dtype=dtype)
    k = normal(gen, batch, kv_heads, k_len, dim, dtype=dtype)
    v = normal(gen, batch, kv_heads, k_len, dim, dtype=dtype)
    if layout == "heads last":  # [B, L, H, D] seen as [B, H, L, D]
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "every third":  # rows of a longer sequence
        q, k, v = (strided(x.transpose(0, 2), "rows").transpose(0, 2) for x in (q, k, v))
    else:
        q, k, v = (strided(x, layout) for x in (q, k, v))
    kwargs = dict(kwargs)
    if learned:
        kwargs["sink_logits"] = normal(gen, kv_heads * group)
    if blocks is not None:
        size = kwargs.get("block_size", 64)
        shape = (
            batch if "batch" in blocks else 1,
            kv_heads * group if "heads" in blocks else 1,
            -(-q_len // size),
            -(-k_len // size),
        )
        mask = torch.rand(shape, generator=gen) < density
        kwargs["block_mask"] = mask.mT.contiguous().mT if layout == "wide" else mask
    return (q, k, v), kwargs


def append(
    seed: int,
    tokens: int = 67,
    kv_heads: int = 2,
    dim: int = 64,
    page_size: int = 32,
    dtype: torch.dtype = torch.float32,
    page_dtype: torch.dtype | None = None,
    layout: str = "plain",
    page_layout: str = "plain",
    rotary: int | None = -1,
    offset: int = 0,
    scattered: bool = False,
) -> Call:
    """append of a run that crosses pages, or of scattered slots; the pages hold NaN before."""
    gen, pick = rng(seed), random.Random(seed)
    pages = tokens // page_size + 3
    order = list(range(pages))
    pick.shuffle(order)
    start = pick.randrange(page_size)
    slots = range(start, start + tokens)
    if scattered:
        slots = pick.sample(range(pages * page_size), tokens)
    where = [[order[s // page_size], s % page_size, s % page_size + offset] for s in slots]
    k_pages, v_pages = page_pool(
        gen, pages, kv_heads, dim, page_size, page_dtype or dtype, page_layout
    )
    args = (
        strided(normal(gen, tokens, kv_heads, dim, dtype=dtype), layout),
        strided(normal(gen, tokens, kv_heads, dim, dtype=dtype), layout),
        k_pages,
        v_pages,
        torch.tensor(where, dtype=torch.int64).reshape(-1, 3),
    )
    inv_freq = None if rotary is None else frequencies(dim, dim if rotary == -1 else rotary)
    return args, {"inv_freq": inv_freq}


def states(seed: int, tokens: int = 5, heads: int = 3, dim: int = 64, dtype=torch.float32) -> Call:
    """Two attention states."""
    gen = rng(seed)
    return (
        normal(gen, tokens, heads, dim, dtype=dtype),
        3 * normal(gen, tokens, heads),
        normal(gen, tokens, heads, dim, dtype=dtype),
        3 * normal(gen, tokens, heads),
    ), {}


def linear(
    seed: int,
    rows: int = 5,
    depth: int = 130,
    outputs: int = 97,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
    bias: bool = True,
    layout: str = "plain",
) -> Call:
    """linear; `layout` applies to rows of x and weight."""
    gen, weight_dtype = rng(seed), weight_dtype or dtype
    x = strided(normal(gen, rows, depth, dtype=dtype), layout)
    w = strided(normal(gen, outputs, depth, dtype=weight_dtype), layout)
    return (x, w, normal(gen, outputs, dtype=weight_dtype) if bias else None), {}


def forms() -> Any:
    """The module of samples in other forms, which is made of this one."""
    return import_module("tests.ops.views")


def pooled_block_mask(
    seed: int,
    batch: int = 2,
    kv_heads: int = 2,
    group: int = 2,
    q_len: int = 130,
    k_len: int = 200,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    **kwargs,
) -> Call:
    """pooled_block_mask over random queries and keys."""
    (q, k, _), _ = dense(seed, batch, kv_heads, group, q_len, k_len, dim, dtype, layout)
    return (q, k), kwargs


def other(module: str, name: str, index: int) -> Callable[[], Call]:
    """A sample of an op whose samples are in a module that is made of this one."""
    return lambda: import_module(f"tests.ops.{module}").SAMPLES[name][index]()


SAMPLES: dict[str, list[Callable[[], Call]]] = {
    "frame_delta_rule": [other("sequences", "frame_delta_rule", i) for i in range(3)],
    "gated_delta_rule": [other("sequences", "gated_delta_rule", i) for i in range(3)],
    "lora": [other("adapters", "lora", i) for i in range(3)],
    "lora_rows": [other("adapters", "lora_rows", i) for i in range(4)],
    "attention": [
        lambda: dense(1),
        lambda: dense(2, window=17, sinks=4, dtype=torch.bfloat16, layout="heads last"),
        lambda: dense(3, q_len=1, k_len=257, group=8, learned=True, softcap=8.0),
        lambda: dense(4, q_len=9, k_len=3, dim=80, dtype=torch.float16, layout="wide"),
        lambda: dense(5, causal=False, window=5, scale=0.3, layout="rows", split=17),
        lambda: dense(6, batch=1, q_len=0),
        lambda: dense(7, blocks="heads", block_size=16, window=40, sinks=2),
    ],
    "paged_attention": [
        lambda: paged(1, [StreamShape(257, 1, 64, 4), StreamShape(67, 67), StreamShape(0, 0)]),
        lambda: paged(2, [StreamShape(65, 3, 16, 2)], dtype=torch.bfloat16, page_layout="sliced"),
        lambda: paged(3, [StreamShape(40, 5)], page_dtype=torch.float16, rotary=None, learned=True),
        lambda: paged(
            4,
            [StreamShape(130, 2)],
            rotary=32,
            q_layout="swapped",
            softcap=5.0,
            scale=0.2,
            split=17,
        ),
        lambda: paged(5, []),
        lambda: forms().paged(6, torch.int8),
        lambda: forms().paged(7, torch.int8, each=False),
    ],
    "append": [
        lambda: append(1),
        lambda: append(2, dtype=torch.bfloat16, layout="rows", page_layout="sliced"),
        lambda: append(3, page_dtype=torch.float16, rotary=32, scattered=True),
        lambda: append(4, tokens=1, rotary=None, layout="swapped"),
        lambda: append(5, tokens=0),
        lambda: forms().append(6, torch.int8),
        lambda: forms().append(7, torch.int8, each=False),
    ],
    "merge_states": [
        lambda: states(1),
        lambda: states(2, dtype=torch.bfloat16, dim=80),
        lambda: states(3, tokens=0),
    ],
    "linear": [
        lambda: linear(1),
        lambda: linear(2, dtype=torch.bfloat16, bias=False, layout="rows"),
        lambda: linear(3, rows=67, weight_dtype=torch.float16, layout="wide"),
        lambda: linear(4, rows=0, bias=False),
    ],
    "pooled_block_mask": [
        lambda: pooled_block_mask(1, block_size=16),
        lambda: pooled_block_mask(2, dtype=torch.bfloat16, layout="heads last", causal=False),
        lambda: pooled_block_mask(3, blocks=3, block_size=16, sinks=3, local=20, window=90),
        lambda: pooled_block_mask(4, batch=1, q_len=0),
    ],
    "append_absorb": [other("evictions", "append_absorb", i) for i in range(4)],
    "causal_conv": [other("sequences", "causal_conv", i) for i in range(3)],
    "linear_attention": [other("sequences", "linear_attention", i) for i in range(3)],
    "hstu_attention": [other("sequences", "hstu_attention", i) for i in range(6)],
    "select": [other("scores", "select", i) for i in range(10)],
    "block_score": [other("scores", "block_score", i) for i in range(6)],
    "segment_reduce": [other("masses", "segment_reduce", i) for i in range(4)],
    "attention_mass": [other("masses", "attention_mass", i) for i in range(5)],
    "assign": [other("masses", "assign", i) for i in range(5)],
    "similarity": [other("survivors", "similarity", i) for i in range(6)],
    "compact": [other("survivors", "compact", i) for i in range(6)],
    "compact_inplace": [other("survivors", "compact_inplace", i) for i in range(3)],
    "scatter_back": [other("survivors", "scatter_back", i) for i in range(4)],
}
