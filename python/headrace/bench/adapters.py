# SPDX-License-Identifier: Apache-2.0
"""Shapes of the multi-adapter ops."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .. import ops
from ..adapters import quantize_rows
from .shapes import Case, bound_call, rms_error


def rows(tokens: int, adapters: int, width: int, rank: int = 16, bits: int | None = None) -> Case:
    """bf16 rows over adapters in turn (rank rows in a pool, 4 or 8 bits if asked for).

    The peer gathers each row's adapter for two batched products where every row has its own, else
    takes one adapter after the other.
    """
    dtype, distinct = torch.bfloat16, tokens <= adapters
    kept = adapters * (8 if distinct else 1)
    a = (torch.randn(kept * rank, 1, width) / width**0.5).to(dtype)
    b = torch.randn(kept * rank, width).to(dtype)
    x, y = torch.randn(tokens, width).to(dtype), torch.zeros(tokens, width, dtype=dtype)
    listed = torch.arange(len(a), dtype=torch.int32)
    indptr = torch.arange(0, len(a) + 1, rank, dtype=torch.int32)
    # Each call meets other adapters, as many as the pool has room for: none waits in the cache.
    turns = [(torch.arange(tokens) % adapters + i).int() for i in range(0, kept, adapters)]
    turn, scale = itertools.cycle(turns), torch.full((kept,), 1e-3)
    weights: dict[str, Tensor] = {}
    pool = (a, b)
    if bits:
        (codes_a, a_scale), (codes_b, b_scale) = (quantize_rows(w.float(), bits) for w in pool)
        pool, weights = (codes_a, codes_b), {"a_scale": a_scale, "b_scale": b_scale}
    stack_a, stack_b = a.view(kept, rank, width), b.view(kept, rank, width)

    def run(slots: Tensor, into: Tensor) -> Tensor:
        return ops.lora_rows(x, *pool, listed, indptr, slots[:, None], scale, into, **weights)

    def gathered() -> Tensor:
        own = next(turn).long()
        down = torch.bmm(x[:, None], stack_a[own].mT)
        return y + torch.bmm(down, stack_b[own])[:, 0] * scale[own, None].to(dtype)

    def loop() -> None:
        own = next(turn)
        for s in own.unique().tolist():
            mine = (own == s).nonzero()[:, 0]
            y[mine] += (x[mine] @ stack_a[s].T) @ stack_b[s] * scale[s].to(dtype)

    bound, axes = bound_call(
        "lora_rows", x, *pool, listed, indptr, turns[0][:, None], scale, y, **weights
    )
    spec = ops.specs()["lora_rows"]

    def check() -> tuple[float, float]:
        want = torch.zeros(tokens, width, dtype=torch.float64)
        exact = [w.double() if w.is_floating_point() else w for w in (x, *pool)]
        wide = {k: w.double() for k, w in weights.items()}
        spec.reference(*exact, listed, indptr, turns[-1][:, None], scale.double(), want, **wide)
        got = run(turns[-1], torch.zeros_like(y))
        return rms_error(got, want), spec.tolerance(dtype, axes, bound)

    kind = "bf16" if bits is None else f"int{bits}"
    return Case(
        "lora_rows", f"{kind} {tokens} rows, {adapters} adapters of rank {rank}, {width} wide",
        lambda: run(next(turn), y), check, spec.bytes(axes, bound), spec.flops(axes, bound),
        gathered if distinct else loop, "gather and bmm" if distinct else "loop over adapters",
    )  # fmt: skip


def stack(tokens: int, adapters: int, width: int, rank: int = 16) -> Case:
    """bf16 rows over stacked adapters in turn, in the orientation in which they were trained."""
    dtype = torch.bfloat16
    a = (torch.randn(adapters, rank, width) / width**0.5).to(dtype)
    b, x = torch.randn(adapters, width, rank).to(dtype), torch.randn(tokens, width).to(dtype)
    slots, scale = (torch.arange(tokens) % adapters).int(), torch.full((adapters,), 1e-3)
    y = torch.zeros(tokens, width, dtype=dtype)
    bound, axes = bound_call("lora", x, a, b, slots, scale, y)
    spec = ops.specs()["lora"]

    def check() -> tuple[float, float]:
        want = torch.zeros(tokens, width, dtype=torch.float64)
        spec.reference(x.double(), a.double(), b.double(), slots, scale.double(), want, None)
        return rms_error(ops.lora(x, a, b, slots, scale), want), spec.tolerance(dtype, axes, bound)

    def loop() -> None:
        for s in range(adapters):
            mine = (slots == s).nonzero()[:, 0]
            y[mine] += (x[mine] @ a[s].T) @ b[s].T * scale[s].to(dtype)

    return Case(
        "lora", f"bf16 {tokens} rows, {adapters} adapters of rank {rank}, {width} wide",
        lambda: ops.lora(x, a, b, slots, scale, y=y), check, spec.bytes(axes, bound),
        spec.flops(axes, bound), loop, "loop over adapters",
    )  # fmt: skip
