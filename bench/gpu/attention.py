# SPDX-License-Identifier: Apache-2.0
"""Attention over pages on a GPU, and what goes with it: inputs, peers and checks of its ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from headrace import ops
from headrace.bench.case import Dims

from . import peers as others
from .measure import DIM, HEADS, KV_HEADS, PAGE, Bench
from .work import Step

UNLIMITED = 2**62
USUAL = Dims(HEADS, KV_HEADS, DIM)


def frequencies(dim: int) -> torch.Tensor:
    return 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))


def decode(
    bench: Bench,
    batch: int,
    cached: int,
    rotate: bool,
    codes: torch.dtype | None = None,
    dims: Dims = USUAL,
) -> None:
    """One query a stream over 4 sinks and a window of `cached` tokens, four million tokens in.

    Over pages of the bench's dtype, or of `codes` with a scale for every slot.
    """
    base, per = 4_000_000 // PAGE * PAGE, cached // PAGE
    cap = cached + 3

    def make() -> dict[str, Any]:
        pages = batch * (per + 1)
        order = torch.randperm(pages).reshape(batch, per + 1)
        entries = torch.zeros(batch, per + 1, 7, dtype=torch.int64)
        entries[..., 0] = order
        entries[:, 0, 2:] = torch.tensor([4, 0, cap, 0, UNLIMITED])
        entries[:, 1:, 2:4] = torch.tensor([PAGE, base])
        entries[:, 1:, 4] = UNLIMITED
        entries[:, 1:, 5] = base + PAGE * torch.arange(per)
        entries[:, 1:, 6] = cached
        indptr = torch.arange(batch + 1, dtype=torch.int32)
        made = dict(
            q=bench.randn(batch, dims.heads, dims.dim),
            k_pages=bench.randn(pages, dims.kv_heads, dims.dim, PAGE),
            v_pages=bench.randn(pages, dims.kv_heads, PAGE, dims.dim),
            entries=entries.reshape(-1, 7),
            entry_indptr=indptr * (per + 1),
            q_indptr=indptr,
            q_pos=torch.full((batch,), base + cached - 1),
            inv_freq=frequencies(dims.dim) if rotate else None,
            # The same number of bytes, contiguous, for the peers.
            _k=bench.randn(batch, dims.kv_heads, cached, dims.dim),
            _v=bench.randn(batch, dims.kv_heads, cached, dims.dim),
        )
        if codes is not None:
            shape = (pages, dims.kv_heads, PAGE)
            made |= {n: 0.01 + torch.rand(shape) / 50 for n in ("k_scale", "v_scale")}
            for name in ("k_pages", "v_pages"):
                made[name] = (40 * made[name].float()).clamp(-127, 127).to(codes)
        return {
            n: x.to(bench.device) if isinstance(x, torch.Tensor) else x for n, x in made.items()
        }

    def check(s: dict, out: tuple) -> list:
        first = {n: x for n, x in s.items() if not n.startswith("_")} | dict(
            q=s["q"][:1].double(),
            entries=s["entries"][: per + 1],
            q_pos=s["q_pos"][:1],
            entry_indptr=s["entry_indptr"][:2],
            q_indptr=s["q_indptr"][:2],
        )
        want = ops.specs()["paged_attention"].reference(
            **first, q_order=None, scale=dims.dim**-0.5, softcap=0.0, sink_logits=None
        )
        return [(out[0][:1], want[0])]

    def dense(s: dict, out: torch.Tensor) -> list:
        """What a peer should give, over the contiguous keys."""
        q, k, v = (x.double() for x in (s["q"], s["_k"], s["_v"]))
        want = F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)
        return [(out.reshape(q.shape), want[:, :, 0])]

    peers: dict[str, Step] = {}
    if rotate and codes is None:
        peers = {
            "sdpa": lambda s: F.scaled_dot_product_attention(
                s["q"][:, :, None], s["_k"], s["_v"], enable_gqa=True
            ),
            "flex": lambda s: flex(bench)(s["q"][:, :, None], s["_k"], s["_v"], enable_gqa=True),
            **others.decode(PAGE),
        }
    small = batch * cached <= 1 << 18  # the rest is the same, and takes gigabytes in fp64
    label = f"decode B {batch} cached {cached} {'re-indexed' if rotate else 'no rotation'}"
    label += f" {str(codes).removeprefix('torch.')}" if codes is not None else ""
    label += "" if dims == USUAL else f" {dims.heads} over {dims.kv_heads} heads of {dims.dim}"
    proofs = dict.fromkeys(peers, dense) if small else {}
    bench.add("paged_attention", label, make, peers, check, proofs)


def shared(bench: Bench, batch: int, common: int, own: int) -> None:
    """One query a stream over pages of `common` tokens that all have, and of `own` of its own."""
    first, each = common // PAGE, own // PAGE
    per, cached = first + each, common + own

    def make() -> dict[str, Any]:
        order = torch.randperm(first + batch * each)
        mine = order[first:].view(batch, each)
        entries = torch.zeros(batch, per, 7, dtype=torch.int64)
        entries[..., 0] = torch.cat([order[:first].expand(batch, first), mine], 1)
        entries[..., 2] = PAGE
        entries[..., 4] = entries[..., 6] = UNLIMITED
        entries[..., 5] = PAGE * torch.arange(per)
        entries, places = entries.flatten(0, 1), torch.randperm(batch * per)
        alone = entries.clone()
        alone[:, 0] = places
        indptr = torch.arange(batch + 1, dtype=torch.int32)
        made = dict(
            q=bench.randn(batch, HEADS, DIM),
            k_pages=bench.randn(len(order), KV_HEADS, DIM, PAGE),
            v_pages=bench.randn(len(order), KV_HEADS, PAGE, DIM),
            entries=entries,
            entry_indptr=indptr * per,
            q_indptr=indptr,
            q_pos=torch.full((batch,), cached - 1),
            inv_freq=frequencies(DIM),
            _entries=alone,
        )
        for name in ("k_pages", "v_pages"):
            made[f"_{name}"] = made[name][entries[places.argsort(), 0].to(bench.device)]
        return {name: x.to(bench.device) for name, x in made.items()}

    def call(s: dict, **others: Any) -> Any:
        public = {name: x for name, x in s.items() if not name.startswith("_")}
        return torch.ops.headrace.paged_attention(**public | others)

    def check(s: dict, out: tuple) -> list:
        last = dict(
            q=s["q"][-1:].double(),
            entries=s["entries"][-per:],
            q_pos=s["q_pos"][-1:],
            entry_indptr=s["entry_indptr"][:2],
            q_indptr=s["q_indptr"][:2],
        )
        named = {n: s[n] for n in ("k_pages", "v_pages", "inv_freq")} | last
        want = ops.specs()["paged_attention"].reference(
            **named, q_order=None, scale=DIM**-0.5, softcap=0.0, sink_logits=None
        )
        return [(out[0][-1:], want[0])]

    def same(s: dict, out: tuple) -> list:
        return [(out[0], call(s)[0])]

    alone = ("entries", "k_pages", "v_pages")
    peers = {
        f"not shared, {backend}": step
        for backend, step in bench.under(
            lambda s: call(s, **{name: s[f"_{name}"] for name in alone})
        ).items()
    }
    label = f"decode B {batch} cached {common} in common and {own}"
    bench.add("paged_attention", label, make, peers, check, dict.fromkeys(peers, same))


def flex(bench: Bench) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if bench.dry else _compiled(flex_attention)


def _compiled(f: Callable, cache: dict = {}) -> Callable:  # noqa: B006
    return cache.setdefault(f, torch.compile(f))


def append(bench: Bench, tokens: int) -> None:
    def make() -> dict[str, Any]:
        pages = -(-tokens // PAGE)
        t = torch.arange(tokens)
        return dict(
            k=bench.randn(tokens, KV_HEADS, DIM),
            v=bench.randn(tokens, KV_HEADS, DIM),
            k_pages=bench.randn(pages, KV_HEADS, DIM, PAGE),
            v_pages=bench.randn(pages, KV_HEADS, PAGE, DIM),
            where=torch.stack([t // PAGE, t % PAGE, t], 1).to(bench.device),
            inv_freq=frequencies(DIM).to(bench.device),
        )

    reference = ops.specs()["append"].reference

    def check(s: dict, out: None) -> list:
        k, v = s["k_pages"].double(), s["v_pages"].double()
        reference(s["k"].double(), s["v"].double(), k, v, s["where"], s["inv_freq"])
        return [(s["k_pages"], k), (s["v_pages"], v)]

    peers: dict[str, Step] = {"torch": lambda s: reference(**s)}
    bench.add("append", f"{tokens} tokens", make, peers, check)


def merge(bench: Bench, rows: int) -> None:
    make = lambda: dict(  # noqa: E731
        o_a=bench.randn(rows, HEADS, DIM),
        lse_a=torch.randn(rows, HEADS, device=bench.device),
        o_b=bench.randn(rows, HEADS, DIM),
        lse_b=torch.randn(rows, HEADS, device=bench.device),
    )
    reference = ops.specs()["merge_states"].reference

    def check(s: dict, out: Any) -> list:
        o, lse = reference(**{n: x.double() for n, x in s.items()})
        got = out if isinstance(out, tuple) else (out,)
        return [(got[0], o), *((x, lse, 1.0) for x in got[1:])]

    peers: dict[str, Step] = {"torch": lambda s: reference(**s)}
    bench.add("merge_states", f"{rows} rows", make, peers, check, {"torch": check})


def hstu(bench: Bench, length: int, reach: int) -> None:
    """One history under a window; the peer masks it in torch."""

    def make() -> dict[str, Any]:
        q, k, v = (bench.randn(length, 4, DIM) for _ in range(3))
        ptr = torch.tensor([0, length], dtype=torch.int32, device=bench.device)
        rule = dict(max_seq_len=length, alpha=DIM**-0.5, max_attn_len=reach)
        return dict(q=q, k=k, v=v, k_indptr=ptr) | rule

    def dense(s: dict) -> torch.Tensor:
        q, k, v = (s[x].transpose(0, 1) for x in "qkv")
        t = torch.arange(length, device=q.device)
        age = t[:, None] - t
        seen = (age >= 0) & (age <= reach)
        return (F.silu(q @ k.mT * s["alpha"]) * seen / length @ v).transpose(0, 1)

    def check(s: dict, out: torch.Tensor) -> list:
        return [(out, dense(s | {x: s[x].double() for x in "qkv"}), 1e-3)]

    label = f"{length} tokens, reach {reach}"
    bench.add("hstu_attention", label, make, {"torch": dense}, check, {"torch": check})
