# SPDX-License-Identifier: Apache-2.0
"""Adapters and linear on a GPU: inputs, peers, floors and checks of the ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from headrace.kernels.lora.reference import unpack

from headrace.adapters import LoraRoute, quantize_rows

from .measure import Bench, near


def linear(bench: Bench, rows: int, n: int, k: int) -> None:
    make = lambda: dict(x=bench.randn(rows, k), weight=bench.randn(n, k), bias=None)  # noqa: E731
    moved = (rows * (n + k) + n * k) * (4 if bench.dry else 2)
    floor = max(
        moved / bench.floors["copy_bytes_per_s"],
        2 * rows * n * k / bench.floors["matrix_flops_per_s"],
    )
    bench.add(
        "linear",
        f"{rows} x {k} by {n}",
        make,
        {"torch linear": lambda s: F.linear(s["x"], s["weight"])},
        floor,
        moved,
        lambda s, out: near(out, s["x"].double() @ s["weight"].double().mT),
    )


def lora(bench: Bench, rows: int, adapters: int, rank: int, width: int) -> None:
    """Rows over adapters in turn; one of rank `rank` each."""
    used = torch.arange(rows, device=bench.device) % adapters

    def make():
        return dict(
            x=bench.randn(rows, width),
            a=bench.randn(adapters, rank, width),
            b=bench.randn(adapters, width, rank),
            slots=used.int(),
            scale=torch.ones(adapters, device=bench.device),
            y=bench.randn(rows, width),
            ranks=None,
        )

    def gathered(s):
        down = torch.bmm(s["a"][used], s["x"][:, :, None])
        return s["y"] + torch.bmm(s["b"][used], down)[:, :, 0]

    def agrees(s, out):  # on a fresh y: that of the timed calls has piled up
        y = torch.zeros_like(s["y"])
        torch.ops.headrace.lora(s["x"], s["a"], s["b"], s["slots"], s["scale"], y)
        exact = {k: v.double() for k, v in s.items() if k in ("x", "a", "b")}
        return near(y, gathered(exact | dict(y=torch.zeros_like(y, dtype=torch.float64))))

    size = 4 if bench.dry else 2
    moved = (min(rows, adapters) * rank * 2 * width + 3 * rows * width) * size
    bench.add(
        "lora",
        f"{rows} rows, {adapters} adapters of rank {rank}, {width} wide",
        make,
        {"gather and bmm": gathered},
        moved / bench.floors["copy_bytes_per_s"],
        moved,
        agrees,
    )


def lora_rows(bench: Bench, rows: int, adapters: int, rank: int, width: int) -> None:
    """The same over a pool of rank rows, dense and as 4-bit codes, with a route made before."""
    used = torch.arange(rows, device=bench.device) % adapters
    size = 4 if bench.dry else 2
    for bits in (None, 4):

        def make(bits=bits):
            a = bench.randn(adapters * rank, 1, width)
            b = bench.randn(adapters * rank, width)
            pool: dict[str, torch.Tensor] = dict(a=a, b=b)
            if bits:
                (pool["a"], a_scale), (pool["b"], b_scale) = (
                    quantize_rows(w.float(), bits, 32) for w in (a, b)
                )
                pool |= dict(a_scale=a_scale, b_scale=b_scale)
            route = LoraRoute(rows, device=bench.device, tiled=True).set(used.int())
            return pool | dict(
                x=bench.randn(rows, width),
                y=bench.randn(rows, width),
                rows=torch.arange(len(a), dtype=torch.int32, device=bench.device),
                row_indptr=torch.arange(
                    0, len(a) + 1, rank, dtype=torch.int32, device=bench.device
                ),
                slots=route.slots,
                order=route.order,
                tiles=route.tiles,
                scale=torch.ones(adapters, device=bench.device),
            )

        def dense(s, dtype):
            whole = (unpack(s[n], s.get(f"{n}_scale"), torch.float32) for n in "ab")
            return (w.to(dtype).view(-1, rank, width) for w in whole)

        def gathered(s, dtype=None):
            a, b = dense(s, dtype or s["x"].dtype)
            down = torch.bmm(a[used], s["x"].to(a.dtype)[:, :, None])
            return s["y"] + torch.bmm(b[used].mT, down)[:, :, 0]

        def agrees(s, out):  # on a fresh y: that of the timed calls has piled up
            y = torch.zeros_like(s["y"])
            torch.ops.headrace.lora_rows(**s | dict(y=y))
            fresh = s | dict(y=torch.zeros_like(y, dtype=torch.float64))
            return near(y, gathered(fresh, torch.float64))

        item = size if bits is None else 0.5 + 4 / 32
        moved = min(rows, adapters) * rank * 2 * width * item + 3 * rows * width * size
        bench.add(
            "lora_rows",
            f"{'4-bit ' if bits else ''}{rows} rows, {adapters} adapters of rank {rank}, {width}",
            make,
            {} if bits else {"gather and bmm": gathered},
            moved / bench.floors["copy_bytes_per_s"],
            moved,
            agrees,
        )
