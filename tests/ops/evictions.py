# SPDX-License-Identifier: Apache-2.0
"""Valid arguments of append_absorb: a ring whose slots hold what is about to leave."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from tests.ops import samples, views
from tests.ops.samples import Call, normal, rng

HELD = {"all": 1.0, "some": 0.6, "none": 0.0}


def append_absorb(
    seed: int,
    lengths: tuple[int, ...] = (3, 0, 18),
    kv_heads: int = 2,
    dim: int = 32,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    page_dtype: torch.dtype | None = None,
    each: bool = True,
    layout: str = "plain",
    page_layout: str = "plain",
    rotary: int | None = -1,
    axes: str | None = None,
    scattered: bool = False,
    held: str = "some",
    normed: bool = True,
    decay: bool = False,
    counted: bool = False,
    offset: int = 0,
    **options: Any,
) -> Call:
    """append_absorb for streams of `lengths`.

    Slots that hold nothing, scales of theirs, and states of absent streams are NaN.
    """
    gen, tokens, streams = rng(seed), sum(lengths), len(lengths)
    kind = page_dtype or dtype
    coded = kind in views.FORMATS
    call = samples.append(
        seed, tokens, kv_heads, dim, page_size, dtype, dtype if coded else kind, layout,
        page_layout, rotary, offset, scattered,
    )  # fmt: skip
    call = views.blank(call, kind, each) if coded else call
    args, kwargs = call if axes is None else views.three_offsets(seed, call, axes)
    k, v, k_pages, v_pages, where = args
    stays = torch.rand(tokens, generator=gen) < HELD[held]
    page, slot = where[stays, :2].T
    n = len(page)
    for pages, at in ((k_pages, (page, slice(None), slice(None), slot)),
                      (v_pages, (page, slice(None), slot))):  # fmt: skip
        old = normal(gen, n, kv_heads, dim)
        if kind == torch.int8:
            old = (50 * old).round().clamp(-127, 127)
        bits = torch.uint8 if coded else kind  # fp8 has no kernel that scatters
        pages.view(bits)[at] = old.to(kind).view(bits)
    if coded and each:
        for name in ("k_scale", "v_scale"):
            kwargs[name][page, :, slot] = torch.rand(n, kv_heads, generator=gen) / 30 + 0.01
    width = where.shape[1] - 2
    old_offsets = torch.randint(-70, 70, (tokens, 2 * width), generator=gen) + offset
    evicted = torch.cat([stays[:, None].long() * 3, old_offsets], 1)
    state = torch.full((streams + 2, kv_heads, dim, dim), torch.nan)
    norm = torch.full((streams + 2, kv_heads, dim), torch.nan)
    rows = torch.randperm(streams + 2, generator=gen)[:streams].int()
    state[rows.long()] = normal(gen, streams, kv_heads, dim, dim)
    norm[rows.long()] = normal(gen, streams, kv_heads, dim).abs() + 0.5
    indptr = torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32)
    kwargs = {**kwargs, **options}
    if decay:
        kwargs["log_decay"] = -torch.rand(kv_heads, generator=gen) / 4
    if counted:
        kwargs["count"] = torch.arange(streams + 2) * 10
    pair = (state, norm if normed else None)
    return (k, v, k_pages, v_pages, where, evicted, *pair, indptr, rows), kwargs


SAMPLES: dict[str, list[Callable[[], Call]]] = {
    "append_absorb": [
        lambda: append_absorb(1),
        lambda: append_absorb(2, dtype=torch.bfloat16, layout="rows", raw=True, counted=True),
        # Scales of pages: those of slots would be read by the next run on the same keywords.
        lambda: append_absorb(3, page_dtype=torch.int8, each=False, axes="turns", normed=False),
        lambda: append_absorb(4, (), dtype=torch.float16, rotary=None),
    ]
}
