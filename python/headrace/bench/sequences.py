# SPDX-License-Identifier: Apache-2.0
"""Shapes of the ops over a sequence that have no softmax and no rule of a delta."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .case import DIM, Case, bound_call, dtype_name, rms_error, short
from .peers import Run, compiled, of_transformers


def hstu_attention(
    length: int, reach: int, new: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> Case:
    """A history under a window, whole or its last `new` rows. The peer masks in torch, as the plain
    code of the HSTU repository does; another takes queries by the window."""
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

    def by_bands(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made, size = [], max(reach, 256)
        for at in range(0, rows, size):
            some = slice(at, min(at + size, rows))
            seen = slice(max(0, length - rows + at - reach), length - rows + some.stop)
            made.append(dense(q[some], k[seen], v[seen], mask[some, seen]))
        return torch.cat(made)

    def more(compile: bool) -> dict[str, Run]:
        return compiled(lambda: dense(*wide)) if compile and rows * length <= 2**24 else {}

    def check() -> tuple[float, float]:
        some = slice(max(0, rows - 300), None)
        want = dense(q[some, :1].double(), k[:, :1].double(), v[:, :1].double(), mask[some])
        got = ops.hstu_attention(q, k, v, ptr, q_ptr, **rule)
        return rms_error(got[some, :1], want), spec.tolerance(dtype, axes, bound)

    wide = (q.float(), k.float(), v.float(), mask)
    rivals: dict[str, Run] = {"torch fp32, by bands": lambda: by_bands(*wide[:3])} if reach else {}
    if dtype != torch.float32:
        rivals[f"torch {dtype_name(dtype)}, dense mask"] = lambda: dense(q, k, v, mask)
    return Case(
        "hstu_attention",
        f"{dtype_name(dtype)} {short(length)} reach {reach or 'all'}"
        + (f" new {new}" if new else ""),
        lambda: ops.hstu_attention(q, k, v, ptr, q_ptr, **rule), check,
        spec.bytes(axes, bound), spec.flops(axes, bound),
        lambda: dense(*wide), "torch fp32, dense mask",
        rivals=rivals, more=more, product=dtype,
    )  # fmt: skip


def causal_conv(tokens: int, channels: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A chunk of `tokens` of one stream, four taps, SiLU; the peer joins, convolves and keeps, as
    transformers does, whose own function is beside it."""
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

    def by_taps() -> torch.Tensor:
        seen = torch.cat([state[0].T, x])
        state.copy_(seen[-3:].T[None])
        taps = torch.stack([seen[i : i + tokens] * weight[:, i] for i in range(4)])
        return F.silu(taps.sum(0)).to(dtype)

    def more(compile: bool) -> dict[str, Run]:
        runs = compiled(peer) if compile else {}
        if update := of_transformers("causal_conv1d_update"):
            runs["transformers, conv1d"] = lambda: (
                update(x.T[None], state, weight.to(dtype), None, "silu")[0].T
            )
        return runs

    def check() -> tuple[float, float]:
        before = state.double()
        want = spec.reference(x.double(), weight.double(), None, before, indptr, rows, True)
        return rms_error(ours(), want), spec.tolerance(dtype, axes, bound)

    return Case(
        "causal_conv", f"{dtype_name(dtype)} [{tokens}, {channels}]", ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch conv1d",
        rivals={"torch, tap by tap": by_taps}, more=more, state=(state,), writes=x.nbytes,
    )  # fmt: skip


def linear_attention(tokens: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A chunk of one stream, 8 heads of 128, ReLU; the peer is the masked product of the chunk, or
    of 64 tokens at a time."""
    q, k, v = (torch.randn(tokens, 8, 128).to(dtype) for _ in range(3))
    state, norm = torch.zeros(1, 8, 128, 128), torch.ones(1, 8, 128)
    indptr, rows = torch.tensor([0, tokens]).int(), torch.zeros(1).int()
    args = (q, k, v, state, norm, indptr, rows)
    bound, axes = bound_call("linear_attention", *args)
    spec = ops.specs()["linear_attention"]

    def ours() -> torch.Tensor:
        return ops.linear_attention(*args)

    def peer(part: slice = slice(None)) -> torch.Tensor:
        a, b, c = (x.float().transpose(0, 1) for x in (q[part].relu(), k[part].relu(), v[part]))
        weights = (a @ b.mT).tril_()
        top = weights @ c + a @ state[0]
        under = weights.sum(-1) + (a @ norm[0, :, :, None])[..., 0] + 1e-6
        state[0] += b.mT @ c
        norm[0] += b.sum(1)
        return (top / under[..., None]).transpose(0, 1).to(dtype)

    def by_chunks() -> torch.Tensor:
        return torch.cat([peer(slice(at, at + 64)) for at in range(0, tokens, 64)])

    def check() -> tuple[float, float]:
        few = (*(x[:130] for x in args[:3]), *(x.clone() for x in (state, norm)),
               indptr.clamp(max=130), rows)  # fmt: skip
        exact = (x.double() if x.is_floating_point() else x for x in few)
        want = spec.reference(**spec.bind(*exact))
        return rms_error(ops.linear_attention(*few), want), spec.tolerance(dtype, axes, bound)

    ways: dict[str, Run] = {"torch expression": peer}
    if tokens > 64:
        ways["torch, chunks of 64"] = by_chunks
    # The square of a long chunk takes longer than its parts.
    first = list(ways)[-1] if tokens > 256 else "torch expression"
    return Case(
        "linear_attention", f"{dtype_name(dtype)} {tokens} tokens", ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), ways.pop(first), first, rivals=ways,
        more=lambda compile: compiled(peer) if compile else {}, state=(state, norm),
    )  # fmt: skip
