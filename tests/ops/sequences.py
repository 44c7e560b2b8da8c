# SPDX-License-Identifier: Apache-2.0
"""Valid arguments of the ops that keep a state, and of those without a softmax."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.ops.samples import Call, frequencies, indptr, normal, rng, strided


def hstu_attention(
    seed: int,
    lengths: tuple[int, ...] = (67, 0, 1, 40),
    news: tuple[int, ...] | None = None,
    heads: int = 2,
    dim: int = 32,
    v_dim: int = 48,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    targets: int | None = None,
    scaled: bool = False,
    kept: int | None = None,
    **kwargs,
) -> Call:
    """hstu_attention over sequences of `lengths`, of which the last `news` ask.

    kept: a rolling cache of 3 + that many keys of every sequence, shuffled, with their indices.
    """
    gen = rng(seed)
    total, rows = sum(lengths), sum(news) if news is not None else sum(lengths)
    q = normal(gen, rows, heads, dim, dtype=dtype)
    k = normal(gen, total, heads, dim, dtype=dtype)
    v = normal(gen, total, heads, v_dim, dtype=dtype)
    args: list = [None, None, None, indptr(lengths), None if news is None else indptr(news)]
    args += [None, None, None]
    if targets is not None:
        args[5] = torch.tensor([min(n, targets) for n in lengths], dtype=torch.int32)
    if kept is not None:
        stays = [
            torch.tensor([i for i in range(n) if i < 3 or i >= n - kept], dtype=torch.int64)[
                torch.randperm(min(n, 3 + kept), generator=gen)
            ]
            for n in lengths
        ]
        none = torch.empty(0, dtype=torch.int64)
        at = torch.cat([none, *(s + int(b) for s, b in zip(stays, args[3], strict=False))])
        k, v, args[6] = k[at], v[at], torch.cat([none, *stays])
        args[3] = indptr([s.numel() for s in stays])
    if scaled:
        args[7] = torch.rand(rows, generator=gen)
    args[:3] = (strided(x, layout) for x in (q, k, v))
    return tuple(args), {"max_seq_len": 71, "alpha": dim**-0.5} | kwargs


def causal_conv(
    seed: int,
    lengths: tuple[int, ...] = (3, 0, 11),
    channels: int = 67,
    taps: int = 4,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
) -> Call:
    """causal_conv; `layout` applies to x; the states of streams that are absent are NaN."""
    gen = rng(seed)
    x = strided(normal(gen, sum(lengths), channels, dtype=dtype), layout)
    streams = len(lengths)
    state = torch.full((streams + 3, channels, taps - 1), torch.nan, dtype=dtype)
    rows = torch.randperm(streams + 3, generator=gen)[:streams].int()
    state[rows.long()] = normal(gen, streams, channels, taps - 1, dtype=dtype)
    indptr = torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32)
    offset = normal(gen, channels) if bias else None
    return (x, normal(gen, channels, taps), offset, state, indptr, rows), {}


def linear_attention(
    seed: int,
    lengths: tuple[int, ...] = (3, 0, 11),
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 32,
    v_dim: int = 48,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    keys: bool = True,
    normed: bool = True,
    decay: bool = False,
    rope: bool = False,
    **options: Any,
) -> Call:
    """linear_attention; `layout` applies to q, k, v; states of absent streams are NaN."""
    gen, tokens, streams = rng(seed), sum(lengths), len(lengths)
    shapes = ((heads, dim), (kv_heads, dim), (kv_heads, v_dim))
    q, k, v = (strided(normal(gen, tokens, *s, dtype=dtype), layout) for s in shapes)
    state = torch.full((streams + 2, kv_heads, dim, v_dim), torch.nan)
    norm = torch.full((streams + 2, kv_heads, dim), torch.nan)
    rows = torch.randperm(streams + 2, generator=gen)[:streams].int()
    state[rows.long()] = normal(gen, streams, kv_heads, dim, v_dim)
    norm[rows.long()] = normal(gen, streams, kv_heads, dim).abs() + 0.5
    indptr = torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32)
    kwargs: dict[str, Any] = dict(options)
    if decay and keys:
        kwargs["log_decay"] = -torch.rand(kv_heads, generator=gen) / 4
    if rope:
        kwargs["inv_freq"] = frequencies(dim, dim // 2)
        kwargs["offset"] = torch.arange(tokens) + 1000
    pair = (k, v) if keys else (None, None)
    return (q, *pair, state, norm if normed else None, indptr, rows), kwargs


def gated_delta_rule(
    seed: int,
    lengths: tuple[int, ...] = (3, 0, 11),
    heads: int = 2,
    group: int = 2,
    dim: int = 32,
    v_dim: int = 48,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    **kwargs,
) -> Call:
    """gated_delta_rule; `layout` applies to q, k and v; states of absent streams are NaN."""
    gen, tokens, streams = rng(seed), sum(lengths), len(lengths)
    q, k = (strided(normal(gen, tokens, heads, dim, dtype=dtype), layout) for _ in "qk")
    v = strided(normal(gen, tokens, heads * group, v_dim, dtype=dtype), layout)
    log_decay = -torch.rand(tokens, heads * group, generator=gen) * 0.3
    beta = torch.rand(tokens, heads * group, generator=gen)
    state = torch.full((streams + 2, heads * group, dim, v_dim), torch.nan)
    rows = torch.randperm(streams + 2, generator=gen)[:streams].int()
    state[rows.long()] = normal(gen, streams, heads * group, dim, v_dim)
    indptr = torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32)
    return (q, k, v, log_decay, beta, state, indptr, rows), kwargs


def frame_delta_rule(
    seed: int,
    frames: tuple[tuple[int, ...], ...] = ((3, 9), (), (6,)),
    heads: int = 2,
    v_heads: int = 4,
    dim: int = 32,
    v_dim: int = 48,
    dtype: torch.dtype = torch.float32,
    layout: str = "plain",
    decay: bool = True,
    rope: bool = True,
    **options: Any,
) -> Call:
    """frame_delta_rule; frames[b] are the sizes of stream b's; states of absent ones are NaN."""
    gen, streams = rng(seed), len(frames)
    sizes = [n for stream in frames for n in stream]
    tokens = sum(sizes)
    # Keys so short that a frame of them cannot push the state out of bounds.
    short = (dim * max([1, *sizes])) ** -0.5

    def of(h: int, d: int, by: float = 1.0, positive: bool = True) -> Tensor:
        x = torch.randn(tokens, h, d, generator=gen) * by
        return strided((x.relu() if positive else x).to(dtype), layout)

    q, k, v = of(heads, dim), of(heads, dim, short), of(v_heads, v_dim, 1.0, False)
    state = torch.full((streams + 2, v_heads, dim, v_dim), torch.nan)
    norm = torch.full((streams + 2, v_heads, dim), torch.nan)
    rows = torch.randperm(streams + 2, generator=gen)[:streams].int()
    state[rows.long()] = normal(gen, streams, v_heads, dim, v_dim)
    norm[rows.long()] = normal(gen, streams, v_heads, dim).abs() + 0.5
    of_tokens = torch.tensor((0, *itertools.accumulate(sizes)), dtype=torch.int32)
    of_frames = torch.tensor((0, *itertools.accumulate(map(len, frames))), dtype=torch.int32)
    kwargs: dict[str, Any] = dict(options)
    if decay:
        kwargs["log_decay"] = -torch.rand(len(sizes), v_heads, generator=gen)
    if rope:
        kwargs["q_hat"] = of(heads, dim, 1.0, False)
        kwargs["k_hat"] = of(heads, dim, short, False)
    beta = torch.rand(tokens, v_heads, generator=gen)
    return (q, k, v, beta, state, norm, of_tokens, of_frames, rows), kwargs


SAMPLES: dict[str, list[Callable[[], Call]]] = {
    "frame_delta_rule": [
        lambda: frame_delta_rule(1),
        lambda: frame_delta_rule(2, dtype=torch.bfloat16, layout="rows", rope=False),
        lambda: frame_delta_rule(3, ((0,),), dtype=torch.float16, decay=False),
    ],
    "hstu_attention": [
        lambda: hstu_attention(1),
        lambda: hstu_attention(2, dtype=torch.bfloat16, layout="rows", targets=5, max_attn_len=9),
        lambda: hstu_attention(3, news=(3, 0, 1, 7), scaled=True, contextual_seq_len=3, sinks=3),
        lambda: hstu_attention(4, (9, 20), (2, 3), kept=6, dtype=torch.float16, max_attn_len=4),
        lambda: hstu_attention(5, causal=False, max_attn_len=7, min_full_attn_seq_len=4, split=5),
        lambda: hstu_attention(6, ()),
    ],
    "causal_conv": [
        lambda: causal_conv(1),
        lambda: causal_conv(2, dtype=torch.bfloat16, layout="rows", bias=False),
        lambda: causal_conv(3, (0,), dtype=torch.float16),
    ],
    "linear_attention": [
        lambda: linear_attention(1),
        lambda: linear_attention(2, dtype=torch.bfloat16, layout="rows", rope=True, raw=True),
        lambda: linear_attention(3, normed=False, decay=True),
    ],
    "gated_delta_rule": [
        lambda: gated_delta_rule(1),
        lambda: gated_delta_rule(2, dtype=torch.bfloat16, layout="rows", normalize=False),
        lambda: gated_delta_rule(3, (), dtype=torch.float16, scale=0.3),
    ],
}
