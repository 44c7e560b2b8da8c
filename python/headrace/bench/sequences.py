# SPDX-License-Identifier: Apache-2.0
"""Shapes of the ops that keep a state, and of those without a softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .case import DIM, Case, bound_call, dtype_name, rms_error, short


def hstu_attention(
    length: int, reach: int, new: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> Case:
    """A history under a window, whole or its last `new` rows. The peer masks in torch."""
    heads = 4
    k, v = (torch.randn(length, heads, DIM).to(dtype) for _ in range(2))
    rows = length if new is None else new
    q, ptr = torch.randn(rows, heads, DIM).to(dtype), torch.tensor([0, length], dtype=torch.int32)
    q_ptr = torch.tensor([0, rows], dtype=torch.int32)
    rule = dict(max_seq_len=length, alpha=DIM**-0.5, max_attn_len=reach)
    bound, axes = bound_call("hstu_attention", q, k, v, ptr, q_ptr, **rule)
    spec = ops.specs()["hstu_attention"]
    t, o = torch.arange(length - rows, length)[:, None], torch.arange(length)[None]
    mask = (o <= t) & ((t - o <= reach) if reach else True)

    def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return (F.silu(q @ k.mT * DIM**-0.5) * mask / length @ v).transpose(0, 1)

    def check() -> tuple[float, float]:
        some = slice(max(0, rows - 300), None)
        want = dense(q[some, :1].double(), k[:, :1].double(), v[:, :1].double(), mask[some])
        got = ops.hstu_attention(q, k, v, ptr, q_ptr, **rule)
        return rms_error(got[some, :1], want), spec.tolerance(dtype, axes, bound)

    wide = (q.float(), k.float(), v.float(), mask)
    return Case(
        "hstu_attention",
        f"{dtype_name(dtype)} {short(length)} reach {reach or 'all'}"
        + (f" new {new}" if new else ""),
        lambda: ops.hstu_attention(q, k, v, ptr, q_ptr, **rule), check,
        spec.bytes(axes, bound), spec.flops(axes, bound),
        lambda: dense(*wide), "torch fp32, dense mask",
        rivals={} if dtype == torch.float32 else {dtype_name(dtype): lambda: dense(q, k, v, mask)},
        product=dtype,
    )  # fmt: skip


def causal_conv(tokens: int, channels: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A chunk of `tokens` of one stream, four taps, SiLU; the peer joins, convolves and keeps."""
    x, weight = torch.randn(tokens, channels).to(dtype), torch.randn(channels, 4)
    state = torch.randn(1, channels, 3).to(dtype)
    indptr, rows = torch.tensor([0, tokens]).int(), torch.zeros(1).int()
    bound, axes = bound_call("causal_conv", x, weight, None, state, indptr, rows)
    spec, narrow = ops.specs()["causal_conv"], weight.to(dtype)[:, None]

    def ours() -> torch.Tensor:
        return ops.causal_conv(x, weight, None, state, indptr, rows)

    def peer() -> torch.Tensor:
        seen = torch.cat([state, x.T[None]], -1)
        state.copy_(seen[..., -3:])
        return F.silu(F.conv1d(seen, narrow, groups=channels))[0].T

    def check() -> tuple[float, float]:
        before = state.double()
        want = spec.reference(x.double(), weight.double(), None, before, indptr, rows, True)
        return rms_error(ours(), want), spec.tolerance(dtype, axes, bound)

    return Case(
        "causal_conv", f"{dtype_name(dtype)} [{tokens}, {channels}]", ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch conv1d", state=(state,),
    )  # fmt: skip


def frame_delta_rule(frames: int, size: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Frames of `size` tokens of one stream, 8 heads of 112; the peers are torch expressions.

    The first does a frame at a time in fp32 products; `bf16` keeps the products in bf16.
    """
    heads, dim, tokens = 8, 112, frames * size
    g = torch.Generator().manual_seed(1)
    short = (dim * size) ** -0.5
    q, k = (torch.randn(tokens, heads, dim, generator=g).relu() * x for x in (1, short))
    turned: dict[str, Any] = {n: x.flip(-1).to(dtype) for n, x in (("q_hat", q), ("k_hat", k))}
    q, k, v = q.to(dtype), k.to(dtype), torch.randn(tokens, heads, dim, generator=g).to(dtype)
    beta, decay = torch.rand(tokens, heads, generator=g), torch.full((frames, heads), -0.1)
    state, norm = torch.zeros(1, heads, dim, dim), torch.ones(1, heads, dim)
    at = (
        torch.arange(0, tokens + 1, size).int(),
        torch.tensor([0, frames]).int(),
        torch.zeros(1).int(),
    )
    args, kwargs = (q, k, v, beta, state, norm, *at), turned | {"log_decay": decay}
    bound, axes = bound_call("frame_delta_rule", *args, **kwargs)
    spec = ops.specs()["frame_delta_rule"]

    def ours() -> torch.Tensor:
        return ops.frame_delta_rule(*args, **kwargs)

    def peer(wide: torch.dtype = torch.float32) -> Tensor:
        out = []
        for f in range(frames):
            part = slice(f * size, (f + 1) * size)
            rows = (q, k, v, turned["q_hat"], turned["k_hat"])
            a, b, c, ah, bh = (x[part].to(wide).transpose(0, 1) for x in rows)
            step = beta[part].T[..., None]
            s = state[0] * decay[f].exp()[:, None, None]
            z = (norm[0] * decay[f].exp()[:, None])[..., None]
            delta = (step * (c.float() - (bh @ s.to(wide)).float())).to(wide)
            state[0] = s + (bh.mT @ delta).float()
            norm[0] = (z + b.float().mT @ (step * (1 - b.float() @ z)))[..., 0]
            under = a.float() @ norm[0, ..., None] + 1e-6
            top = ah @ state[0].to(wide)
            out.append((top / under).transpose(0, 1).to(dtype))
        return torch.cat(out)

    def check() -> tuple[float, float]:
        wide = {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
                for n, x in bound.items()}  # fmt: skip
        want = spec.reference(**wide)
        return rms_error(ours(), want), spec.tolerance(dtype, axes, bound)

    return Case(
        "frame_delta_rule", f"{dtype_name(dtype)} {frames} frames of {size}", ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch expression",
        rivals={} if dtype == torch.float32 else {dtype_name(dtype): lambda: peer(dtype)},
        state=(state, norm),
    )  # fmt: skip


def linear_attention(tokens: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A chunk of one stream, 8 heads of 128, ReLU; the peer is the masked product of the chunk."""
    q, k, v = (torch.randn(tokens, 8, 128).to(dtype) for _ in range(3))
    state, norm = torch.zeros(1, 8, 128, 128), torch.ones(1, 8, 128)
    indptr, rows = torch.tensor([0, tokens]).int(), torch.zeros(1).int()
    args = (q, k, v, state, norm, indptr, rows)
    bound, axes = bound_call("linear_attention", *args)
    spec = ops.specs()["linear_attention"]

    def ours() -> torch.Tensor:
        return ops.linear_attention(*args)

    def peer() -> torch.Tensor:
        a, b, c = (x.float().transpose(0, 1) for x in (q.relu(), k.relu(), v))
        weights = (a @ b.mT).tril_()
        top = weights @ c + a @ state[0]
        under = weights.sum(-1) + (a @ norm[0, :, :, None])[..., 0] + 1e-6
        state[0] += b.mT @ c
        norm[0] += b.sum(1)
        return (top / under[..., None]).transpose(0, 1).to(dtype)

    def check() -> tuple[float, float]:
        wide = {n: x.double() if n in ("q", "k", "v", "state", "norm") else x
                for n, x in bound.items()}  # fmt: skip
        want = spec.reference(**wide)
        return rms_error(ours(), want), spec.tolerance(dtype, axes, bound)

    return Case(
        "linear_attention", f"{dtype_name(dtype)} {tokens} tokens", ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch expression",
        state=(state, norm),
    )  # fmt: skip


def gated_delta_rule(tokens: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A chunk of `tokens` of one stream, 8 heads of 128 x 128; the peer takes token after token."""
    heads = 8
    q, k, v = (torch.randn(tokens, heads, DIM).to(dtype) for _ in range(3))
    log_decay, beta = -torch.rand(tokens, heads) * 0.1, torch.rand(tokens, heads)
    state = torch.zeros(1, heads, DIM, DIM)
    indptr, rows = torch.tensor([0, tokens]).int(), torch.zeros(1).int()
    args = (q, k, v, log_decay, beta)
    bound, axes = bound_call("gated_delta_rule", *args, state, indptr, rows)
    spec, scale = ops.specs()["gated_delta_rule"], DIM**-0.5

    def check() -> tuple[float, float]:
        few = (*(x[:64] for x in args), torch.zeros_like(state), indptr.clamp(max=64), rows)
        exact = [x.double() if x.is_floating_point() else x for x in few]
        want = spec.reference(*exact, scale, True)
        return rms_error(ops.gated_delta_rule(*few), want), spec.tolerance(dtype, axes, bound)

    def by_chunks() -> Tensor:
        """The chunked form: the updates of 64 tokens as one triangular system."""
        made, one = [], torch.eye(64)
        unit = [x.float() * torch.rsqrt(x.float().square().sum(-1, True) + 1e-6) for x in (q, k)]
        for at in range(0, tokens, 64):
            part = slice(at, min(at + 64, tokens))
            a, b, c = (x[part].transpose(0, 1) for x in (*unit, v.float()))
            g, step = log_decay[part].cumsum(0).T[..., None], beta[part].T[..., None]
            n = a.shape[1]
            since = (g - g.mT).tril().exp().tril()
            mixed = one[:n, :n] + (step * (b @ b.mT) * since).tril(-1)
            both = torch.cat([step * c, step * g.exp() * b], -1)
            u, w = torch.linalg.solve_triangular(mixed, both, upper=False).split(DIM, -1)
            fresh = u - w @ state[0]
            o = (a * g.exp()) @ state[0] + ((a @ b.mT) * since) @ fresh
            state[0] = state[0] * g[:, -1:].exp() + (b * (g[:, -1:] - g).exp()).mT @ fresh
            made.append((scale * o).transpose(0, 1).to(dtype))
        return torch.cat(made)

    return Case(
        "gated_delta_rule", f"{dtype_name(dtype)} {tokens} tokens, {heads} heads of {DIM} x {DIM}",
        lambda: ops.gated_delta_rule(*args, state, indptr, rows), check,
        spec.bytes(axes, bound), spec.flops(axes, bound),
        lambda: spec.reference(*args, state, indptr, rows, scale, True), "torch, token by token",
        rivals={"torch, chunks of 64": by_chunks} if tokens > 1 else {}, state=(state,),
    )  # fmt: skip
