# SPDX-License-Identifier: Apache-2.0
"""Samples made into others: quantised pages, three position axes, lists of entries per kv head."""

from __future__ import annotations

from typing import Any

import torch
from headrace.kernels.attention.reference import CAP, COUNT, ORIGIN
from torch import Tensor

from tests.ops import samples
from tests.ops.paged import replaced
from tests.ops.samples import UNLIMITED, Call

LARGEST = {torch.int8: 127, torch.float8_e4m3fn: 448}
FORMATS = tuple(LARGEST)


def codes_of(pages: Tensor, dtype: torch.dtype, axis: int, each: bool) -> tuple[Tensor, Tensor]:
    """Codes of pages whose slots lie along the other inner axis, and scales [N, Hkv, P or 1].

    Where pages are NaN the codes are the worst there are; so is the scale, where it is the slot's.
    """
    known = pages.isfinite()
    clean = torch.where(known, pages, 0.0).float()
    step = clean.abs().amax(axis if each else (-1, -2)) / LARGEST[dtype]
    step = step if each else step[..., None]
    step = step.clamp(min=1e-6)
    codes = (clean / step.unsqueeze(axis)).clamp(-LARGEST[dtype], LARGEST[dtype])
    if dtype == torch.int8:
        codes = torch.where(known, codes.round(), 127.0).to(dtype)
    else:
        codes = torch.where(known, codes, torch.nan).to(dtype)
    if each:
        step = torch.where(known.all(axis), step, torch.nan)
    return codes, step


def quantised(call: Call, dtype: torch.dtype, each: bool = True) -> Call:
    """A call of paged_attention with its pages as codes; `each`: a scale for every slot."""
    args, kwargs = call
    k, k_scale = codes_of(args[1], dtype, -2, each)
    v, v_scale = codes_of(args[2], dtype, -1, each)
    return replaced(args, k_pages=k, v_pages=v), {**kwargs, "k_scale": k_scale, "v_scale": v_scale}


def freq_axis(count: int, how: str) -> Tensor:
    """Sections in the shares 2:3:3, or axes that take turns."""
    i = torch.arange(count)
    if how == "sections":
        return (i * 8 >= 2 * count).int() + (i * 8 >= 5 * count).int()
    return (i % 3).int()


def three_axes(seed: int, call: Call, how: str = "sections") -> Call:
    """A call of paged_attention with positions, origins and caps along two more axes."""
    (*_, entries, _, _, q_pos), kwargs = call
    gen = samples.rng(seed)
    more = torch.empty(len(entries), 4, dtype=torch.int64)
    more[:, ::2] = torch.randint(-40, 40, (len(entries), 2), generator=gen)
    more[:, 1::2] = torch.randint(0, 60, (len(entries), 2), generator=gen)
    more[::3, 1::2] = UNLIMITED
    at = torch.randint(-50, 50, (len(q_pos), 2), generator=gen)
    kwargs = {"q_order": q_pos, **kwargs}
    if kwargs.get("inv_freq") is not None:
        kwargs["freq_axis"] = freq_axis(kwargs["inv_freq"].numel(), how)
    return replaced(
        call[0], entries=torch.cat([entries, more], 1), q_pos=torch.cat([q_pos[:, None], at], 1)
    ), kwargs


def per_head(seed: int, call: Call, own_pages: bool) -> Call:
    """The same with a list for every kv head: each has lost other entries, and is cut elsewhere.

    own_pages: pages [N * Hkv, 1, ...] that hold one head each.
    """
    args, kwargs = call
    _, k_pages, v_pages, entries, entry_indptr = args[:5]
    heads = k_pages.shape[1]
    gen = samples.rng(seed)
    lists, counts = [], []
    for b in range(len(entry_indptr) - 1):
        view = entries[int(entry_indptr[b]) : int(entry_indptr[b + 1])]
        for g in range(heads):
            own = view[torch.rand(len(view), generator=gen) < 0.7].clone()
            own[:, COUNT] -= (torch.rand(len(own), generator=gen) * own[:, COUNT]).long() // 2
            own[:, ORIGIN] -= g
            own[:, CAP] -= g
            if own_pages:
                own[:, 0] = own[:, 0] * heads + g
            lists.append(own)
            counts.append(len(own))
    named = {"entries": torch.cat(lists), "entry_indptr": samples.indptr(counts)}
    if own_pages:
        named["k_pages"], named["v_pages"] = (x.flatten(0, 1)[:, None] for x in (k_pages, v_pages))
        for name in ("k_scale", "v_scale"):
            if kwargs.get(name) is not None:
                kwargs = {**kwargs, name: kwargs[name].flatten(0, 1)[:, None]}
    return replaced(args, **named), kwargs


def paged(seed: int, fmt: torch.dtype, each: bool = True) -> Call:
    """paged_attention in all forms at once: codes, three axes, a gain, lists of pages per head."""
    streams = [samples.StreamShape(67, 5, 20, 4), samples.StreamShape(30, 1)]
    call = quantised(samples.paged(seed, streams, page_size=16, rope_gain=1.2), fmt, each)
    return per_head(seed, three_axes(seed, call), each)


def append(seed: int, fmt: torch.dtype, each: bool = True) -> Call:
    """append of codes about origins of three axes."""
    return three_offsets(seed, blank(samples.append(seed, 20), fmt, each), "turns")


def blank(call: Call, fmt: torch.dtype, each: bool = True, step: float = 0.03) -> Call:
    """A call of append with pages full of the worst code; scales NaN, or `step` where only read."""
    (k, v, k_pages, v_pages, where), kwargs = call
    n, heads, _, size = k_pages.shape
    pages = [torch.full(x.shape, 0x7F, dtype=torch.uint8).view(fmt) for x in (k_pages, v_pages)]
    scales = [torch.full((n, heads, size), torch.nan) for _ in range(2)]
    if not each:
        scales = [torch.full((n, heads, 1), step * (1 + i)) for i in range(2)]
    return (k, v, *pages, where), {**kwargs, "k_scale": scales[0], "v_scale": scales[1]}


def three_offsets(seed: int, call: Call, how: str) -> Call:
    """A call of append with offsets along two more axes."""
    args, kwargs = call
    more = torch.randint(-60, 60, (len(args[4]), 2), generator=samples.rng(seed))
    if kwargs["inv_freq"] is not None:
        kwargs = {**kwargs, "freq_axis": freq_axis(kwargs["inv_freq"].numel(), how)}
    return (*args[:4], torch.cat([args[4], more], 1)), kwargs


def appended(seed: int, case: dict[str, Any]) -> Call:
    """A call of append by a case of a grid, which `pages`, `each` and `axes` are taken from."""
    sizes = dict(case)
    pages, each, axes = (sizes.pop(name) for name in ("pages", "each", "axes"))
    floats = pages in samples.DTYPES
    call = samples.append(seed, page_dtype=pages if floats else None, **sizes)
    call = call if floats else blank(call, pages, each)
    return call if axes is None else three_offsets(seed, call, axes)


def copied(call: Call) -> Call:
    """The same call of append, to be written elsewhere."""
    args, kwargs = call
    scales = {n: x.clone() for n, x in kwargs.items() if n.endswith("scale")}
    return (*args[:2], args[2].clone(), args[3].clone(), args[4]), {**kwargs, **scales}


def written(call: Call) -> list[Tensor]:
    """All that append writes: pages, and scales where there are any."""
    args, kwargs = call
    scales = (kwargs.get(name) for name in ("k_scale", "v_scale"))
    return [*args[2:4], *(x for x in scales if x is not None)]


def same_codes(got: Tensor, want: Tensor, share: float) -> bool:
    """Whether codes differ by one at most, and in less than `share` of all: a rounding of the
    angle may tip a tie."""
    far = (got.view(torch.int8).long() - want.view(torch.int8).long()).abs()
    return int(far.max()) <= 1 and float((far > 0).double().mean()) < share
