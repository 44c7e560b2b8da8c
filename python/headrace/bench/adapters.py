# SPDX-License-Identifier: Apache-2.0
"""Shapes of the multi-adapter ops."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from ..adapters import LoraRoute, LoraSite, quantize_rows
from ..buffers import huge
from .case import Case, bound_call, dtype_name, rms_error
from .peers import Run, peft_rows


def rows(tokens: int, adapters: int, width: int, rank: int = 16, bits: int | None = None) -> Case:
    """bf16 rows over adapters in turn (rank rows in a pool, 4 or 8 bits if asked for), at a site.

    Where every row has its own adapter the pool is several times what a cache holds, and each call
    meets others: none waits in it. The peer then gathers each row's adapter for two batched
    products, else it takes one adapter after the other.
    """
    dtype, distinct = torch.bfloat16, tokens <= adapters
    copies = (128 // (bits or 16)) if distinct else 1
    a = (torch.randn(adapters * rank, 1, width) / width**0.5).to(dtype)
    b = torch.randn(adapters * rank, width).to(dtype)
    x, y = torch.randn(tokens, width).to(dtype), torch.zeros(tokens, width, dtype=dtype)
    peers = 8 if distinct else 1
    plain = _Site(a, b, {}, peers, x, y, rank)
    ours = plain
    if bits:
        (codes_a, a_scale), (codes_b, b_scale) = (quantize_rows(w.float(), bits) for w in (a, b))
        scales = {"a_scale": a_scale, "b_scale": b_scale}
        ours = _Site(codes_a, codes_b, scales, copies, x, y, rank)
        # The peers' floats are what the codes stand for, so that all compute the same.
        plain.a.copy_(restored(codes_a, a_scale, bits).repeat(peers, 1, 1))
        plain.b.copy_(restored(codes_b, b_scale, bits).repeat(peers, 1))
    stack_a, stack_b = plain.a.view(-1, rank, width), plain.b.view(-1, rank, width)
    turn = itertools.cycle([r.slots[:, 0].long() for r in plain.routes])

    def gathered() -> Tensor:
        own = next(turn)
        down = torch.bmm(x[:, None], stack_a[own].mT)
        return y.add_(torch.bmm(down, stack_b[own])[:, 0] * plain.scale[own, None].to(dtype))

    def loop() -> Tensor:
        own = next(turn)
        for s in own.unique().tolist():
            mine = (own == s).nonzero()[:, 0]
            y[mine] += (x[mine] @ stack_a[s].T) @ stack_b[s] * plain.scale[s].to(dtype)
        return y

    def more(compile: bool) -> dict[str, Run]:
        other: dict[str, Run] = (
            {"loop over adapters": loop} if distinct else {"gather and bmm": gathered}
        )
        own = next(turn)
        return other | peft_rows(stack_a, stack_b, plain.scale, own, x, y)

    bound, axes = bound_call("lora_rows", *ours.arguments(), **ours.weights)
    spec = ops.specs()["lora_rows"]

    def check() -> tuple[float, float]:
        want = torch.zeros(tokens, width, dtype=torch.float64)
        used = slice(0, adapters * rank)  # those of the first turn
        pool = (ours.a[used], ours.b[used])
        exact = [w.double() if w.is_floating_point() else w for w in (x, *pool)]
        wide = {k: w[used].double() for k, w in ours.weights.items()}
        lists = (ours.listed[used], ours.indptr[: adapters + 1], ours.routes[0].slots)
        spec.reference(*exact, *lists, ours.scale.double(), want, **wide)
        got = ours.site(x, torch.zeros_like(y), ours.routes[0])
        return rms_error(got, want), spec.tolerance(dtype, axes, bound)

    others: dict[str, Callable[[], object]] = {"the op by itself": ours.op}
    if bits:
        others["bf16 adapters"] = plain.step
    kind = "bf16" if bits is None else f"int{bits}"
    return Case(
        "lora_rows", f"{kind} {tokens} rows, {adapters} adapters of rank {rank}, {width} wide",
        ours.step, check, spec.bytes(axes, bound), spec.flops(axes, bound),
        gathered if distinct else loop, "gather and bmm" if distinct else "loop over adapters",
        others, more=more, state=(y,), product=dtype,
        turns=(copies if bits else peers),
    )  # fmt: skip


def restored(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """What the codes of `quantize_rows` stand for, fp32."""
    if bits == 4:
        pairs = codes.unflatten(-1, (-1, 16))
        codes = torch.stack([pairs & 15, pairs >> 4], -2).flatten(-3).to(torch.int8) - 8
    return (codes.float().unflatten(-1, (scales.shape[-1], -1)) * scales[..., None]).flatten(-2)


class _Site:
    """A pool with room for `copies` of the adapters given, and a route for each of them."""

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        weights: dict[str, Tensor],
        copies: int,
        x: Tensor,
        y: Tensor,
        rank: int,
    ) -> None:
        adapters, self.x, self.y = len(a) // rank, x, y
        self.a, self.b = _pool(a, copies), _pool(b, copies)
        self.weights = {k: _pool(w, copies) for k, w in weights.items()}
        self.listed = torch.arange(len(self.a), dtype=torch.int32)
        self.indptr = torch.arange(0, len(self.a) + 1, rank, dtype=torch.int32)
        self.scale = torch.full((copies * adapters,), 1e-3)
        self.routes = [
            LoraRoute(len(x)).set((torch.arange(len(x)) % adapters + i * adapters).int())
            for i in range(copies)
        ]
        pool = (self.a, self.b, self.listed, self.indptr)
        self.site = LoraSite(*pool, self.scale, **self.weights)
        self._turn = itertools.cycle(self.routes)

    def arguments(self) -> tuple[Tensor, ...]:
        slots = next(self._turn).slots
        return (self.x, self.a, self.b, self.listed, self.indptr, slots, self.scale, self.y)

    def step(self) -> Tensor:
        return self.site(self.x, self.y, next(self._turn))

    def op(self) -> Tensor:
        return ops.lora_rows(*self.arguments(), **self.weights)


def _pool(w: Tensor, copies: int) -> Tensor:
    """w over and over, in memory as AdapterBank has it."""
    made = huge(torch.empty(copies * len(w), *w.shape[1:], dtype=w.dtype))
    made.view(copies, *w.shape)[:] = w
    return made


def without(tokens: int, width: int, rank: int = 16) -> Case:
    """A layer whose rows use no adapter: the base and a site beside the base alone."""
    dtype = torch.float32
    base, x = torch.randn(width, width).to(dtype), torch.randn(tokens, width).to(dtype)
    a, b = torch.randn(rank, 1, width).to(dtype), torch.randn(rank, width).to(dtype)
    pool = _Site(a, b, {}, 1, x, torch.zeros(tokens, width, dtype=dtype), rank)
    route = LoraRoute(tokens).set(torch.full((tokens,), -1, dtype=torch.int32))

    def ours() -> Tensor:
        return pool.site(x, torch.nn.functional.linear(x, base), route)

    def through_the_op() -> Tensor:
        y = torch.nn.functional.linear(x, base)
        lists = (pool.a, pool.b, pool.listed, pool.indptr, route.slots, pool.scale)
        return ops.lora_rows(x, *lists, y)

    def peer() -> Tensor:
        return torch.nn.functional.linear(x, base)

    def check() -> tuple[float, float]:
        want = peer()
        same = all(torch.equal(f(), want) for f in (ours, through_the_op))
        return (0.0 if same else float("inf")), 0.0

    size = (base.numel() + 2 * x.numel()) * dtype.itemsize
    return Case(
        "lora_rows", f"base layer fp32 {tokens} rows, none with an adapter, {width} wide",
        ours, check, size, 2 * tokens * width * width, peer, "the base alone",
        {"the base and the op": through_the_op},
    )  # fmt: skip


def stack(
    tokens: int,
    adapters: int,
    width: int,
    rank: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    exact: bool = True,
) -> Case:
    """Rows over stacked adapters in turn, in the orientation in which they were trained. For one
    adapter the peer is two products that know of no other."""
    a = (torch.randn(adapters, rank, width) / width**0.5).to(dtype)
    b, x = torch.randn(adapters, width, rank).to(dtype), torch.randn(tokens, width).to(dtype)
    slots, scale = (torch.arange(tokens) % adapters).int(), torch.full((adapters,), 1e-3)
    y = torch.zeros(tokens, width, dtype=dtype)
    bound, axes = bound_call("lora", x, a, b, slots, scale, y)
    spec = ops.specs()["lora"]

    def check() -> tuple[float, float]:
        want = torch.zeros(tokens, width, dtype=torch.float64)
        spec.reference(x.double(), a.double(), b.double(), slots, scale.double(), want, None)
        got = ops.lora(x, a, b, slots, scale, exact=exact)
        return rms_error(got, want), spec.tolerance(dtype, axes, bound)

    def loop() -> Tensor:
        for s in range(adapters):
            mine = (slots == s).nonzero()[:, 0]
            y[mine] += (x[mine] @ a[s].T) @ b[s].T * scale[s].to(dtype)
        return y

    def alone() -> Tensor:
        return y.addmm_(x @ a[0].T, b[0].T, alpha=1e-3)

    def gathered() -> Tensor:
        own = slots.long()
        down = torch.bmm(x[:, None], a[own].mT)
        return y.add_(torch.bmm(down, b[own].mT)[:, 0] * scale[own, None].to(dtype))

    return Case(
        "lora",
        f"{dtype_name(dtype)} {tokens} rows, {adapters} adapters of rank {rank}, {width} wide"
        + ("" if exact else ", exact=False"),
        lambda: ops.lora(x, a, b, slots, scale, y=y, exact=exact), check, spec.bytes(axes, bound),
        spec.flops(axes, bound), *((loop, "loop over adapters") if adapters > 1 else
                                   (alone, "two products")), state=(y,),
        more=lambda compile: {"gather and bmm": gathered}
        | peft_rows(a, b.mT, scale, slots.long(), x, y),
        product=dtype,
    )  # fmt: skip
