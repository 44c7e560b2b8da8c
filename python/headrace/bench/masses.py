# SPDX-License-Identifier: Apache-2.0
"""Summaries of segments, attention received and nearest candidates, as a benchmark has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .case import LLAMA_8B, Case, Dims, after, bound_call, dtype_name, rms_error
from .peers import compiled

SIZE = 64  # tokens of a block
STATES = {"mean": ("total", "count"), "bounds": ("low", "high"), "directions": ("unit",)}


def segment_reduce(
    tokens: int, kind: str, dtype: torch.dtype = torch.bfloat16, dims: Dims = LLAMA_8B
) -> Case:
    """Keys of `tokens` added to the summaries of blocks of 64; the peer is what torch has."""
    x = torch.randn(tokens, dims.kv_heads, dims.dim).to(dtype)
    ids, shape = (torch.arange(tokens) // SIZE).int(), (tokens // SIZE, *x.shape[1:])
    kinds = {"count": torch.int32, "low": dtype, "high": dtype}
    states = {
        name: torch.zeros(shape[:1] if name == "count" else shape, dtype=kinds.get(name))
        for name in STATES[kind]
    }
    bound, axes = bound_call("segment_reduce", x, ids, **states)
    spec = ops.specs()["segment_reduce"]
    at = ids.long()
    spread = at[:, None, None].expand_as(x)

    def peer() -> None:
        if kind == "mean":
            states["total"].index_add_(0, at, x.float())
            states["count"].add_(torch.bincount(at, minlength=shape[0]))
        elif kind == "bounds":
            states["low"].scatter_reduce_(0, spread, x, "amin")
            states["high"].scatter_reduce_(0, spread, x, "amax")
        else:
            unit = torch.nn.functional.normalize(x.float(), dim=-1)
            states["unit"].index_add_(0, at, unit)

    def blocks() -> object:  # whole blocks in order, nothing to add to
        cut = x.view(-1, SIZE, *shape[1:])
        if kind == "mean":
            return cut.sum(1, dtype=torch.float32)
        if kind == "bounds":
            return cut.amin(1), cut.amax(1)
        return torch.nn.functional.normalize(cut.float(), dim=-1).sum(1)

    def check() -> tuple[float, float]:
        n = min(tokens, 1024)
        got = {name: torch.zeros_like(s) for name, s in states.items()}
        want = {name: s.double() if s.is_floating_point() else s.clone() for name, s in got.items()}
        ops.segment_reduce(x[:n], ids[:n], **got)
        spec.reference(
            x[:n].double(), ids[:n],
            *(want.get(name) for name in ("total", "low", "high", "unit", "count")),
        )  # fmt: skip
        error = max(rms_error(got[name], want[name]) for name in states)
        return error, spec.tolerance(torch.float32, axes, bound)

    def held() -> Tensor:
        return torch.cat([s.flatten().double() for s in states.values()])

    def ours() -> None:
        ops.segment_reduce(x, ids, **states)

    return Case(
        "segment_reduce", f"{kind} {dtype_name(dtype)} {tokens} tokens",
        ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer,
        "torch, scattered", {"torch, whole blocks": blocks}, state=tuple(states.values()),
        results={"ours": after(ours, held), "torch, scattered": after(peer, held)},
    )  # fmt: skip


def attention_mass(
    tokens: int,
    asked: int,
    known: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    dims: Dims = LLAMA_8B,
) -> Case:
    """What the last `asked` queries of a prompt look at, pooled as in SnapKV."""
    q = torch.randn(1, dims.heads, asked, dims.dim).to(dtype)
    k = torch.randn(1, dims.kv_heads, tokens, dims.dim).to(dtype)
    options: dict[str, Any] = {"exclude": asked, "pool": 5}
    if known:
        options["lse"] = ops.attention(q, k, k, return_lse=True)[1]
    bound, axes = bound_call("attention_mass", q, k, **options)
    spec = ops.specs()["attention_mass"]

    def peer() -> Tensor:
        logits = q @ k.repeat_interleave(dims.group, 1).mT * dims.dim**-0.5
        seen = torch.ones(asked, tokens, dtype=torch.bool).tril(tokens - asked)
        p = logits.masked_fill(~seen, -torch.inf).float().softmax(-1)[..., : tokens - asked]
        mass = p.mean(2).view(1, dims.kv_heads, -1, tokens - asked).mean(2)
        return torch.nn.functional.avg_pool1d(mass, 5, stride=1, padding=2)

    def check() -> tuple[float, float]:
        few = k[:, :, -2048:]
        only = {name: x for name, x in options.items() if name != "lse"}
        arguments = spec.bind(q.double(), few.double(), **only) | {"scale": dims.dim**-0.5}
        error = rms_error(ops.attention_mass(q, few, **only), spec.reference(**arguments))
        return error, spec.tolerance(torch.float32, axes, bound)

    name = "the last query" if asked == 1 else f"{asked} queries"
    return Case(
        "attention_mass",
        f"{name} {dtype_name(dtype)} {tokens} tokens" + (", sums known" if known else ""),
        lambda: ops.attention_mass(q, k, **options), check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch, each head",
        more=lambda compile: compiled(peer) if compile else {}, product=dtype, reads=k,
    )  # fmt: skip


def assign(
    rows: int, candidates: int, dim: int, metric: str, dtype: torch.dtype = torch.float32
) -> Case:
    """The nearest candidate of every row; without candidates half of the rows, as in ToMe."""
    gen = torch.Generator().manual_seed(0)
    word = lambda n: torch.randint(-(2**31), 2**31, (n, dim), generator=gen).int()  # noqa: E731
    real = lambda n: torch.randn(n, dim, generator=gen).to(dtype)  # noqa: E731
    made = word if metric == "hamming" else real
    x, c = made(rows), made(candidates) if candidates else None
    options: dict[str, Any] = {"metric": metric, "bipartite": c is None}
    bound, axes = bound_call("assign", x[None], None if c is None else c[None], **options)
    spec = ops.specs()["assign"]

    def peer() -> object:
        a, b = (x[::2], x[1::2]) if c is None else (x, c)
        if metric == "hamming":
            n = a[:, None] ^ b
            n = n - ((n >> 1) & 0x55555555)
            n = (n & 0x33333333) + ((n >> 2) & 0x33333333)
            n = (n + (n >> 4)) & 0x0F0F0F0F
            return (((n * 0x01010101) >> 24) & 0xFF).sum(-1).min(-1)
        if metric == "l2" and dtype == torch.float32:
            return torch.cdist(a, b).min(-1)
        if metric == "l2":  # which cdist knows in fp32 alone
            return expanded()
        if metric == "cos":
            a, b = (torch.nn.functional.normalize(t, dim=-1) for t in (a, b))
        return (a @ b.mT).max(-1)

    def check() -> tuple[float, float]:
        few = x[:200] if c is None else x[:100]
        got = ops.assign(few, c, **options)[1]
        wide = [None if t is None else t[None].double() if metric != "hamming" else t[None]
                for t in (few, c)]  # fmt: skip
        want = spec.reference(*wide, None, metric, None, False, c is None)[1][0]
        return rms_error(got, want), spec.tolerance(torch.float32, axes, bound)

    def expanded() -> Tensor:
        a, b = (x[::2], x[1::2]) if c is None else (x, c)
        near = torch.addmm(b.square().sum(-1), a, b.mT, alpha=-2).amin(-1)
        return (near + a.square().sum(-1)).clamp(min=0).sqrt()

    def likeness() -> Tensor:  # as the peer puts it: a distance, or bits that differ
        said = ops.assign(x, c, **options)[1]
        return {"l2": (-said).clamp(min=0).sqrt(), "hamming": -said}.get(metric, said)

    name = f"{rows} x {dim}" + (f" to {candidates}" if c is not None else ", every second")
    return Case(
        "assign", f"{metric} {name}" + ("" if dtype == torch.float32 else f", {dtype_name(dtype)}"),
        lambda: ops.assign(x, c, **options), check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch, eager",
        rivals={"torch, expanded": expanded} if metric == "l2" else {},
        more=lambda compile: compiled(peer) if compile else {},
        results={"ours": likeness}, product=dtype if metric != "hamming" else torch.int8,
    )  # fmt: skip


def shapes(quick: bool) -> dict[str, list[Callable[[], Case]]]:
    """What is measured of these ops."""
    tokens = 4096
    prompts: list[tuple] = [(4096, 1), (4096, 32)]
    choices = [(576, 0, 64, "cos"), (2048, 64, 128, "l2"), (4096, 256, 1, "hamming")]
    if not quick:
        tokens = 65536
        prompts = [(131072, 1), (32768, 32), (32768, 64), (32768, 64, True)]
        choices = [(576, 0, 64, "cos"), (2916, 0, 64, "cos"), (65536, 256, 128, "l2"),
                   (10549, 5000, 128, "cos"), (65536, 1024, 1, "hamming")]  # fmt: skip
    return {
        "segment_reduce": [partial(segment_reduce, tokens, kind) for kind in STATES],
        "attention_mass": [partial(attention_mass, *prompt) for prompt in prompts],
        "assign": [partial(assign, *choice) for choice in choices],
    }
