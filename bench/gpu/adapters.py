# SPDX-License-Identifier: Apache-2.0
"""Adapters and linear on a GPU: inputs, peers and checks of the ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from headrace.kernels.lora.reference import unpack
from torch import Tensor

from headrace.adapters import LoraRoute, quantize_rows

from . import peers as others
from .measure import Bench
from .work import Check, Step


def linear(bench: Bench, rows: int, n: int, k: int) -> None:
    make = lambda: dict(x=bench.randn(rows, k), weight=bench.randn(n, k), bias=None)  # noqa: E731
    check = lambda s, out: [(out, s["x"].double() @ s["weight"].double().mT)]  # noqa: E731
    peers = {"torch linear": lambda s: F.linear(s["x"], s["weight"])}
    bench.add("linear", f"{rows} x {k} by {n}", make, peers, check, {"torch linear": check})


def _proved(
    peers: dict[str, Callable[..., Any]], exact: Callable[[dict, Tensor], Tensor]
) -> tuple[dict[str, Step], dict[str, Check]]:
    """Peers that add to y, and the proofs that they do: on a fresh y, since that of the timed calls
    has piled up."""

    def proof(f: Callable[..., Any]) -> Check:
        def check(s: dict, _: Any) -> list:
            y = f(s, torch.zeros_like(s["y"]))
            return [(y, exact(s, torch.zeros_like(s["y"], dtype=torch.float64)))]

        return check

    steps: dict[str, Step] = {n: lambda s, f=f: f(s, s["y"]) for n, f in peers.items()}
    return steps, {n: proof(f) for n, f in peers.items()}


def lora(bench: Bench, rows: int, adapters: int, rank: int, width: int) -> None:
    """Rows over adapters in turn; one of rank `rank` each."""
    used = torch.arange(rows, device=bench.device) % adapters

    def make() -> dict[str, Any]:
        return dict(
            x=bench.randn(rows, width),
            a=bench.randn(adapters, rank, width),
            b=bench.randn(adapters, width, rank),
            slots=used.int(),
            scale=torch.ones(adapters, device=bench.device),
            y=bench.randn(rows, width),
            ranks=None,
        )

    def gathered(s: dict, y: Tensor) -> Tensor:
        down = torch.bmm(s["a"][used], s["x"][:, :, None])
        return y + torch.bmm(s["b"][used], down)[:, :, 0]

    def exact(s: dict, y: Tensor) -> Tensor:
        return gathered({n: s[n].double() for n in ("x", "a", "b")}, y)

    def check(s: dict, _: Any) -> list:
        y = torch.zeros_like(s["y"])
        torch.ops.headrace.lora(s["x"], s["a"], s["b"], s["slots"], s["scale"], y)
        return [(y, exact(s, y.double() * 0))]

    peers, proofs = _proved(
        {"gather and bmm": gathered, **others.lora(used, lambda s: (s["a"], s["b"]))}, exact
    )
    label = f"{rows} rows, {adapters} adapters of rank {rank}, {width} wide"
    bench.add("lora", label, make, peers, check, proofs)


def pool(
    bench: Bench, rows: int, adapters: int, rank: int, width: int, bits: int | None
) -> dict[str, Any]:
    """Arguments of `lora_rows` over a pool of rank rows, dense or as codes, with a route."""
    used = torch.arange(rows, device=bench.device) % adapters
    a = bench.randn(adapters * rank, 1, width)
    b = bench.randn(adapters * rank, width)
    made: dict[str, Any] = dict(a=a, b=b)
    if bits:
        (made["a"], a_scale), (made["b"], b_scale) = (
            quantize_rows(w.float(), bits, 32) for w in (a, b)
        )
        made |= dict(a_scale=a_scale, b_scale=b_scale)
    route = LoraRoute(rows, device=bench.device, tiled=True).set(used.int())
    ints: dict[str, Any] = dict(dtype=torch.int32, device=bench.device)
    return made | dict(
        x=bench.randn(rows, width),
        y=bench.randn(rows, width),
        rows=torch.arange(len(a), **ints),
        row_indptr=torch.arange(0, len(a) + 1, rank, **ints),
        slots=route.slots,
        order=route.order,
        tiles=route.tiles,
        scale=torch.ones(adapters, device=bench.device),
    )


def lora_rows(
    bench: Bench, rows: int, adapters: int, rank: int, width: int, bits: int | None = None
) -> None:
    """The same over a pool of rank rows, dense or as codes."""
    used = torch.arange(rows, device=bench.device) % adapters
    make = lambda: pool(bench, rows, adapters, rank, width, bits)  # noqa: E731

    def dense(s: dict, dtype: torch.dtype) -> tuple[Tensor, ...]:
        whole = (unpack(s[n], s.get(f"{n}_scale"), torch.float32) for n in "ab")
        return tuple(w.to(dtype).view(-1, rank, width) for w in whole)

    def gathered(s: dict, y: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        a, b = dense(s, dtype or s["x"].dtype)
        down = torch.bmm(a[used], s["x"].to(a.dtype)[:, :, None])
        return y + torch.bmm(b[used].mT, down)[:, :, 0]

    def exact(s: dict, y: Tensor) -> Tensor:
        return gathered(s, y, torch.float64)

    def stacked(s: dict) -> tuple[Tensor, Tensor]:
        a, b = dense(s, s["x"].dtype)
        return a, b.mT.contiguous()

    def check(s: dict, _: Any) -> list:
        y = torch.zeros_like(s["y"])
        torch.ops.headrace.lora_rows(
            **{n: x for n, x in s.items() if not n.startswith("_")} | dict(y=y)
        )
        return [(y, exact(s, y.double() * 0))]

    ways = {} if bits else {"gather and bmm": gathered, **others.lora(used, stacked)}
    peers, proofs = _proved(ways, exact)
    label = f"{bits}-bit " if bits else ""
    label += f"{rows} rows, {adapters} adapters of rank {rank}, {width}"
    bench.add("lora_rows", label, make, peers, check, proofs)
