# SPDX-License-Identifier: Apache-2.0
"""Shapes of append_absorb."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .case import LLAMA_8B, PAGE, Case, Dims, after, bound_call, dtype_name, frequencies, rms_error
from .peers import Run, compiled


def append_absorb(
    streams: int, tokens: int, dtype: torch.dtype = torch.bfloat16, dims: Dims = LLAMA_8B
) -> Case:
    """A chunk of `tokens` of each stream over a ring of four pages that is full, ReLU.

    The peer gathers, turns, adds and scatters in torch. `moving its bytes` passes once over a
    state of the same size and over as many bytes as the slots hold, in place.
    """
    total, pages, heads, dim = streams * tokens, 4 * streams, dims.kv_heads, dims.dim
    k, v = (torch.randn(total, heads, dim).to(dtype) for _ in "kv")
    k_pages = torch.randn(pages, heads, dim, PAGE).to(dtype)
    v_pages = torch.randn(pages, heads, PAGE, dim).to(dtype)
    state, norm = torch.zeros(streams, heads, dim, dim), torch.zeros(streams, heads, dim)
    t = torch.arange(total)
    stream, slot = t // tokens, (37 * (t // tokens) + t % tokens) % (4 * PAGE)  # not in step
    page, slot = stream * 4 + slot // PAGE, slot % PAGE
    where = torch.stack([page, slot, slot], 1)
    evicted = torch.stack([torch.ones_like(t), slot, torch.zeros_like(t)], 1)
    indptr = torch.arange(0, total + 1, tokens, dtype=torch.int32)
    rows, inv_freq = torch.arange(streams, dtype=torch.int32), frequencies(dim)
    args = (k, v, k_pages, v_pages, where, evicted, state, norm, indptr, rows)
    bound, axes = bound_call("append_absorb", *args, inv_freq=inv_freq)
    spec = ops.specs()["append_absorb"]
    angle = slot[:, None].double() * inv_freq
    cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]

    def turned(x: Tensor, sign: int, at: slice) -> Tensor:
        a, b = x.float().split(dim // 2, -1)
        c, s = cos[at], sign * sin[at]
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    def expression(at: slice, first: int, last: int) -> None:
        own, seats = page[at], slot[at]
        old = turned(k_pages[own, :, :, seats], -1, at).relu().view(-1, tokens, heads, dim)
        values = v_pages[own, :, seats].float().view(-1, tokens, heads, dim)
        state[first:last].add_(torch.einsum("bthd,bthv->bhdv", old, values))
        norm[first:last].add_(old.sum(1))
        k_pages[own, :, :, seats] = turned(k[at], 1, at).to(dtype)
        v_pages[own, :, seats] = v[at]

    def peer() -> None:
        expression(slice(None), 0, streams)

    def one_by_one() -> None:
        for b in range(streams):
            mine = slice(b * tokens, (b + 1) * tokens)
            expression(mine, b, b + 1)

    other, slots = torch.ones_like(state), torch.zeros(2 * k.numel() * k.itemsize // 4).int()

    def move() -> None:
        other.mul_(1.0)
        slots.bitwise_not_()

    def check() -> tuple[float, float]:
        few = min(streams, 2)
        wide = {n: x.double().clone() if n in ("k", "v", "k_pages", "v_pages", "state", "norm")
                else x for n, x in bound.items()}  # fmt: skip
        for n in ("k", "v", "where", "evicted"):
            wide[n] = wide[n][: few * tokens]
        spec.reference(**wide | {"indptr": indptr[: few + 1], "rows": rows[:few]})
        ops.append_absorb(*args, inv_freq=inv_freq)
        error = rms_error(state[:few], wide["state"][:few])
        return error, spec.tolerance(torch.float32, axes, bound)

    def held() -> Tensor:
        slots = k_pages[page, :, :, slot].float()
        return torch.cat([x.flatten() for x in (state, norm, slots)])

    def ours() -> None:
        ops.append_absorb(*args, inv_freq=inv_freq)

    results = {
        name: after(run, held)
        for name, run in (("ours", ours), ("torch expression", peer),
                          ("torch, a stream at a time", one_by_one))
    }  # fmt: skip

    def more(compile: bool) -> dict[str, Run]:
        runs = compiled(peer) if compile else {}
        results.update({name: after(run, held) for name, run in runs.items()})
        return runs

    return Case(
        "append_absorb", f"{dtype_name(dtype)} {streams} streams x {tokens} tokens",
        ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch expression",
        {"moving its bytes": move}, state=(k_pages, v_pages, state, norm),
        rivals={"torch, a stream at a time": one_by_one} if streams > 1 else {}, more=more,
        results=results, again=4 * (state.numel() + norm.numel()),
    )  # fmt: skip
