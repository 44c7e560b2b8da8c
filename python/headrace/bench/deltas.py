# SPDX-License-Identifier: Apache-2.0
"""Shapes of the ops that correct a state by what it foretold."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .case import DIM, Case, bound_call, dtype_name, rms_error
from .peers import Run, compiled, fla_chunks, of_transformers


def frame_delta_rule(frames: int, size: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Frames of `size` tokens of one stream, 8 heads of 112; the peers are torch expressions.

    The first does a frame at a time in fp32 products; another keeps the products in the dtype.
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
        rivals={}
        if dtype == torch.float32
        else {f"torch, {dtype_name(dtype)} products": lambda: peer(dtype)},
        more=lambda compile: compiled(peer) if compile else {}, state=(state, norm),
    )  # fmt: skip


def gated_delta_rule(tokens: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A chunk of `tokens` of one stream, 8 heads of 128 x 128; the peer takes token after token.
    Beside it the chunked form, ours in torch and those of other packages."""
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

    def more(compile: bool) -> dict[str, Run]:
        whole = [x[None] for x in (q, k, v, log_decay, beta)]
        runs: dict[str, Run] = {}
        if rule := of_transformers("torch_chunk_gated_delta_rule"):

            def stock() -> Tensor:
                o, last = rule(
                    *whole, 64, initial_state=state, output_final_state=True,
                    use_qk_l2norm_in_kernel=True,
                )  # fmt: skip
                state.copy_(last)
                return o

            runs["transformers, chunks of 64"] = stock
        if naive := fla_chunks():

            def plain() -> Tensor:
                unit = (F.normalize(x.float(), dim=-1, eps=1e-6) for x in whole[:2])
                rest = (whole[2].float(), *whole[3:])
                o, last = naive(*unit, *rest, 64, scale, state, True)
                state.copy_(last)
                return o.to(dtype)

            runs["fla, plain torch"] = plain
        return runs

    return Case(
        "gated_delta_rule", f"{dtype_name(dtype)} {tokens} tokens, {heads} heads of {DIM} x {DIM}",
        lambda: ops.gated_delta_rule(*args, state, indptr, rows), check,
        spec.bytes(axes, bound), spec.flops(axes, bound),
        lambda: spec.reference(*args, state, indptr, rows, scale, True), "torch, token by token",
        rivals={"torch, chunks of 64": by_chunks} if tokens > 1 else {},
        more=more if tokens > 1 else lambda compile: {}, state=(state,),
    )  # fmt: skip
