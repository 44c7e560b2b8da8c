# SPDX-License-Identifier: Apache-2.0
"""The ops that keep a state, on a GPU: inputs, peers, floors and checks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace import ops

from . import peers as others
from .measure import DIM, KV_HEADS, PAGE, Bench
from .work import Step


def ends(bench: Bench, streams: int, tokens: int) -> dict[str, Tensor]:
    """indptr and rows of streams of equal length."""
    more: dict[str, Any] = dict(device=bench.device, dtype=torch.int32)
    return dict(
        indptr=torch.arange(0, streams * tokens + 1, tokens, **more),
        rows=torch.arange(streams, **more),
    )


def fresh(s: dict, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments with a state of their own, small: that of the timed calls has piled up."""
    given = {n: x for n, x in s.items() if not n.startswith("_")}
    return given | {n: 0.1 * torch.ones_like(s[n]) for n in names}


def wide(s: dict) -> dict[str, Any]:
    """Floating tensors in fp64, copied."""
    return {n: x.double().clone() if isinstance(x, Tensor) and x.is_floating_point() else x
            for n, x in s.items()}  # fmt: skip


def heads_first(x: Tensor, streams: int) -> Tensor:
    """[T, H, ...] as fp32, or fp64 of such, [streams, H, n, ...]."""
    return (
        x.to(torch.promote_types(x.dtype, torch.float32))
        .unflatten(0, (streams, -1))
        .transpose(1, 2)
    )


def gated_delta(bench: Bench, streams: int, tokens: int) -> None:
    """Eight heads of 128 x 128. The peer is the chunked form in torch, 64 tokens at a time."""
    total, heads = streams * tokens, 8

    def make() -> dict[str, Any]:
        q, k, v = (bench.randn(total, heads, DIM) for _ in range(3))
        gates = torch.rand(2, total, heads, device=bench.device)
        return dict(
            q=q, k=F.normalize(k.float(), dim=-1).to(k.dtype), v=v,
            log_decay=-0.1 * gates[0], beta=gates[1].contiguous(),
            state=torch.zeros(streams, heads, DIM, DIM, device=bench.device),
            normalize=False, scale=DIM**-0.5, **ends(bench, streams, tokens),
        )  # fmt: skip

    def peer(s: dict) -> Tensor:
        q, k, v, g, beta = (
            heads_first(s[x], streams) for x in ("q", "k", "v", "log_decay", "beta")
        )
        state, outs = s["state"], []
        for t in range(0, tokens, 64):
            a, b, c, h = (x[:, :, t : t + 64] for x in (q, k, v, g))
            step, h = beta[:, :, t : t + 64, None], h.cumsum(-1)[..., None]
            decay = (h - h.mT).tril().exp().tril()
            lower = (step * b @ b.mT * decay).tril(-1)
            right = torch.cat([step * c, step * h.exp() * b], -1)
            eye = torch.eye(a.shape[2], device=a.device)
            solved = torch.linalg.solve_triangular(lower + eye, right, upper=False)
            u = solved[..., :DIM] - solved[..., DIM:] @ state
            outs.append((a * h.exp()) @ state + (a @ b.mT * decay) @ u)
            last = h[:, :, -1:]
            state = last.exp() * state + (b * (last - h).exp()).mT @ u
        return DIM**-0.5 * torch.cat(outs, 2).transpose(1, 2).reshape(total, heads, DIM)

    def check(s: dict, _: object) -> list:
        given = fresh(s, ("state",))
        want = peer(wide(given))
        return [(torch.ops.headrace.gated_delta_rule(**given), want)]

    def proof(s: dict, out: Tensor) -> list:
        return [(out.reshape(total, heads, DIM), peer(wide(s)))]

    label = f"{streams} streams, {tokens} tokens"
    peers: dict[str, Step] = {"torch chunks": peer, **others.gated_delta(streams)}
    bench.add("gated_delta_rule", label, make, peers, check, dict.fromkeys(peers, proof))


def linear_attention(bench: Bench, streams: int, tokens: int) -> None:
    """Eight heads of 128, ReLU. The peer is the masked product of chunks of 256 in torch."""
    total, heads = streams * tokens, 8

    def make() -> dict[str, Any]:
        q, k, v = (bench.randn(total, heads, DIM) for _ in range(3))
        return dict(
            q=q, k=k, v=v, state=torch.zeros(streams, heads, DIM, DIM, device=bench.device),
            norm=torch.ones(streams, heads, DIM, device=bench.device),
            **ends(bench, streams, tokens),
        )  # fmt: skip

    def peer(s: dict) -> Tensor:
        q, k, v = (heads_first(s[x], streams) for x in "qkv")
        state, norm, outs = s["state"], s["norm"][..., None], []
        for t in range(0, tokens, 256):
            a, b, c = q[:, :, t : t + 256].relu(), k[:, :, t : t + 256].relu(), v[:, :, t : t + 256]
            weights = (a @ b.mT).tril()
            under = weights.sum(-1, keepdim=True) + a @ norm + 1e-6
            outs.append((weights @ c + a @ state) / under)
            state, norm = state + b.mT @ c, norm + b.sum(2)[..., None]
        return torch.cat(outs, 2).transpose(1, 2).reshape(total, heads, DIM)

    def check(s: dict, _: object) -> list:
        given = fresh(s, ("state", "norm"))
        want = peer(wide(given))
        return [(torch.ops.headrace.linear_attention(**given), want)]

    label = f"{streams} streams, {tokens} tokens"
    peers: dict[str, Step] = {"torch chunks": peer, **others.linear_attention(streams)}
    proofs = {"torch chunks": lambda s, out: [(out, peer(wide(s)))]}
    bench.add("linear_attention", label, make, peers, check, proofs)


def causal_conv(bench: Bench, tokens: int, channels: int) -> None:
    """A chunk of one stream, four taps, SiLU."""

    def make() -> dict[str, Any]:
        return dict(
            x=bench.randn(tokens, channels),
            weight=torch.randn(channels, 4, device=bench.device),
            bias=None,
            state=bench.randn(1, channels, 3),
            **ends(bench, 1, tokens),
        )

    def peer(s: dict) -> Tensor:
        seen = torch.cat([s["state"], s["x"].T[None]], -1)
        return F.silu(F.conv1d(seen, s["weight"].to(seen.dtype)[:, None], groups=channels))[0].T

    def check(s: dict, _: object) -> list:
        given = fresh(s, ("state",))
        want = peer(wide(given))
        return [(torch.ops.headrace.causal_conv(**given), want)]

    peers: dict[str, Step] = {"torch conv1d": peer}
    proofs = {"torch conv1d": lambda s, out: [(out, peer(wide(s)))]}
    bench.add("causal_conv", f"[{tokens}, {channels}]", make, peers, check, proofs)


def append_absorb(bench: Bench, streams: int, tokens: int) -> None:
    """A chunk of each stream over a ring of four pages that is full, ReLU."""
    total, half = streams * tokens, DIM // 2
    spec, changed = ops.specs()["append_absorb"], ("state", "norm", "k_pages", "v_pages")
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)

    def make() -> dict[str, Any]:
        t = torch.arange(total)
        slot = (37 * (t // tokens) + t % tokens) % (4 * PAGE)
        page, slot = t // tokens * 4 + slot // PAGE, slot % PAGE
        offsets = [torch.ones_like(t), slot, torch.zeros_like(t)]
        return dict(
            k=bench.randn(total, KV_HEADS, DIM),
            v=bench.randn(total, KV_HEADS, DIM),
            k_pages=bench.randn(4 * streams, KV_HEADS, DIM, PAGE),
            v_pages=bench.randn(4 * streams, KV_HEADS, PAGE, DIM),
            where=torch.stack([page, slot, slot], 1).to(bench.device),
            evicted=torch.stack(offsets, 1).to(bench.device),
            state=torch.zeros(streams, KV_HEADS, DIM, DIM, device=bench.device),
            norm=torch.zeros(streams, KV_HEADS, DIM, device=bench.device),
            inv_freq=frequencies.to(bench.device),
            **ends(bench, streams, tokens),
        )  # fmt: skip

    def peer(s: dict) -> None:
        page, slot = s["where"][:, 0], s["where"][:, 1]
        angle = slot[:, None].double() * s["inv_freq"]
        cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]

        def turned(x: Tensor, sign: int) -> Tensor:
            a, b = x.float().split(half, -1)
            return torch.cat([a * cos - sign * b * sin, b * cos + sign * a * sin], -1)

        old = heads_first(turned(s["k_pages"][page, :, :, slot], -1).relu(), streams)
        s["state"] += old.mT @ heads_first(s["v_pages"][page, :, slot], streams)
        s["norm"] += old.sum(2)
        s["k_pages"][page, :, :, slot] = turned(s["k"], 1).to(s["k"].dtype)
        s["v_pages"][page, :, slot] = s["v"]

    def check(s: dict, _: object) -> list:
        given = fresh(s, ("state", "norm"))
        want = wide(spec.bind(**given))
        spec.reference(**want)
        torch.ops.headrace.append_absorb(**given)
        return [(given[n], want[n], 1.0 if n in ("state", "norm") else 0.0) for n in changed]

    label = f"{streams} streams, {tokens} tokens"
    bench.add("append_absorb", label, make, {"torch": peer}, check)


def frame_delta(bench: Bench, streams: int, frames: int, size: int) -> None:
    """Frames of `size` tokens of each stream, 20 heads of 112; the peer does a frame at a time."""
    heads, dim, tokens = 20, 112, streams * frames * size

    def make() -> dict[str, Any]:
        q, k, v, q_hat, k_hat = (bench.randn(tokens, heads, dim) for _ in range(5))
        short = (dim * size) ** -0.5
        more: dict[str, Any] = dict(device=bench.device, dtype=torch.int32)
        return dict(
            q=q.relu(), k=k.relu() * short, v=v, q_hat=q_hat, k_hat=k_hat * short,
            beta=torch.rand(tokens, heads, device=bench.device),
            state=torch.zeros(streams, heads, dim, dim, device=bench.device),
            norm=torch.ones(streams, heads, dim, device=bench.device),
            frames=torch.arange(0, tokens + 1, size, **more),
            indptr=torch.arange(0, streams * frames + 1, frames, **more),
            rows=torch.arange(streams, **more), update=False,
        )  # fmt: skip

    def dense(s: dict) -> torch.Tensor:
        names = ("q", "k", "v", "q_hat", "k_hat")
        rows = [s[x].reshape(streams, frames, size, heads, dim).transpose(2, 3) for x in names]
        beta = s["beta"].reshape(streams, frames, size, heads, 1).transpose(2, 3)
        state, norm, outs = s["state"], s["norm"][..., None], []
        kind = torch.promote_types(rows[0].dtype, torch.float32)
        for f in range(frames):
            q, k, v, q_hat, k_hat = (x[:, f].to(kind) for x in rows)
            state = state + k_hat.mT @ (beta[:, f] * (v - k_hat @ state.to(kind)))
            norm = norm + k.mT @ (beta[:, f] * (1 - k @ norm.to(kind)))
            outs.append((q_hat @ state / (q @ norm + 1e-6)).transpose(1, 2))
        return torch.stack(outs, 1).reshape(tokens, heads, dim)

    def check(s: dict, out: torch.Tensor) -> list:
        return [(out, dense(wide(s)))]

    label = f"{streams} streams, {frames} frames of {size}"
    peers: dict[str, Step] = {"torch fp32": dense}
    bench.add("frame_delta_rule", label, make, peers, check, {"torch fp32": check})
