# SPDX-License-Identifier: Apache-2.0
"""Attention on a GPU: inputs, peers, floors and checks of its ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from headrace import ops

from . import peers as others
from .measure import DIM, HEADS, KV_HEADS, PAGE, Bench, near

UNLIMITED = 2**62


def decode(
    bench: Bench, batch: int, cached: int, rotate: bool, codes: torch.dtype | None = None
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
        half = DIM // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        made = dict(
            q=bench.randn(batch, HEADS, DIM),
            k_pages=bench.randn(pages, KV_HEADS, DIM, PAGE),
            v_pages=bench.randn(pages, KV_HEADS, PAGE, DIM),
            entries=entries.reshape(-1, 7),
            entry_indptr=indptr * (per + 1),
            q_indptr=indptr,
            q_pos=torch.full((batch,), base + cached - 1),
            inv_freq=frequencies if rotate else None,
            # The same number of bytes, contiguous, for the peers.
            _k=bench.randn(batch, KV_HEADS, cached, DIM),
            _v=bench.randn(batch, KV_HEADS, cached, DIM),
        )
        if codes is not None:
            shape = (pages, KV_HEADS, PAGE)
            made |= {n: 0.01 + torch.rand(shape) / 50 for n in ("k_scale", "v_scale")}
            for name in ("k_pages", "v_pages"):
                made[name] = (40 * made[name].float()).clamp(-127, 127).to(codes)
        return {
            n: x.to(bench.device) if isinstance(x, torch.Tensor) else x for n, x in made.items()
        }

    def check(s: dict, out: tuple) -> bool:
        first = {n: x for n, x in s.items() if not n.startswith("_")} | dict(
            q=s["q"][:1].double(),
            entries=s["entries"][: per + 1],
            q_pos=s["q_pos"][:1],
            entry_indptr=s["entry_indptr"][:2],
            q_indptr=s["q_indptr"][:2],
        )
        want = ops.specs()["paged_attention"].reference(
            **first, q_order=None, scale=DIM**-0.5, softcap=0.0, sink_logits=None
        )
        return near(out[0][:1], want[0])

    row = DIM + 4 if codes is not None else DIM * (4 if bench.dry else 2)
    kv = batch * (cached + 4) * KV_HEADS * 2 * row
    peers = (
        {}
        if not rotate or codes is not None
        else {
            "sdpa": lambda s: F.scaled_dot_product_attention(
                s["q"][:, :, None], s["_k"], s["_v"], enable_gqa=True
            ),
            "flex": lambda s: flex(bench)(s["q"][:, :, None], s["_k"], s["_v"], enable_gqa=True),
            **others.decode(PAGE),
        }
    )
    bench.add(
        "paged_attention",
        f"decode B {batch} cached {cached} {'re-indexed' if rotate else 'no rotation'}"
        + (f" {str(codes).removeprefix('torch.')}" if codes is not None else ""),
        make,
        peers,
        kv / bench.floors["copy_bytes_per_s"],
        kv,
        check,
    )


def flex(bench: Bench) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if bench.dry else _compiled(flex_attention)


def _compiled(f: Callable, cache: dict = {}) -> Callable:  # noqa: B006
    return cache.setdefault(f, torch.compile(f))


def prefill(bench: Bench, tokens: int, window: int) -> None:
    """Causal attention of a whole prompt under a window with 4 sinks."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b, h, i, j):
        return (j <= i) & ((i - j < window) | (j < 4))

    mask = create_block_mask(seen, None, None, tokens, tokens, device=bench.device)
    make = lambda: dict(  # noqa: E731
        q=bench.randn(1, HEADS, tokens, DIM),
        k=bench.randn(1, KV_HEADS, tokens, DIM),
        v=bench.randn(1, KV_HEADS, tokens, DIM),
        window=window,
        sinks=4,
    )

    def check(s: dict, out: tuple) -> bool:
        tail = min(64, tokens)
        want = ops.specs()["attention"].reference(
            s["q"][:, :, -tail:].double(),
            s["k"].double(),
            s["v"].double(),
            window,
            4,
            None,
            True,
            DIM**-0.5,
            0.0,
        )
        return near(out[0][:, :, -tail:], want[0])

    peers: dict[str, Callable] = {
        "flex": lambda s: flex(bench)(s["q"], s["k"], s["v"], block_mask=mask, enable_gqa=True)
    }
    peers |= others.prefill(window)
    if tokens <= 32768:
        peers["sdpa full causal"] = lambda s: F.scaled_dot_product_attention(
            s["q"], s["k"], s["v"], is_causal=True, enable_gqa=True
        )
    pairs = sum(min(t + 1, window + min(4, max(0, t + 1 - window))) for t in range(tokens))
    flops = 4 * HEADS * DIM * pairs
    bench.add(
        "attention",
        f"prefill {tokens} window {window} + 4 sinks",
        make,
        peers,
        flops / bench.floors["matrix_flops_per_s"],
        tokens * (HEADS + 2 * KV_HEADS) * DIM * 2,
        check,
    )


def sparse(bench: Bench, tokens: int) -> None:
    """Causal attention of a whole prompt over a fifth of its blocks; the peer sees the same."""
    from torch.nn.attention.flex_attention import create_block_mask

    blocks = -(-tokens // 64)
    chosen = torch.rand(1, HEADS, blocks, blocks, device=bench.device) < 0.2
    chosen |= torch.eye(blocks, dtype=torch.bool, device=bench.device)

    def seen(b, h, i, j):
        return (j <= i) & chosen[0, h, i // 64, j // 64]

    mask = create_block_mask(seen, None, HEADS, tokens, tokens, device=bench.device)
    make = lambda: dict(  # noqa: E731
        q=bench.randn(1, HEADS, tokens, DIM),
        k=bench.randn(1, KV_HEADS, tokens, DIM),
        v=bench.randn(1, KV_HEADS, tokens, DIM),
        block_mask=chosen,
    )

    def check(s: dict, out: tuple) -> bool:
        last = tokens % 64 or 64
        args = (s["q"][:, :, -last:].double(), s["k"].double(), s["v"].double())
        options = (None, 0, None, True, DIM**-0.5, 0.0, chosen[:, :, -1:], 64)
        want = ops.specs()["attention"].reference(*args, *options)
        return near(out[0][:, :, -last:], want[0])

    peers: dict[str, Callable] = {
        "flex": lambda s: flex(bench)(s["q"], s["k"], s["v"], block_mask=mask, enable_gqa=True),
        "ours, dense": lambda s: ops.attention(s["q"], s["k"], s["v"]),
    }
    share = float(chosen.tril().double().mean())
    flops = 4 * HEADS * DIM * tokens * tokens * share
    bench.add(
        "attention",
        f"prefill {tokens} of a fifth of the blocks",
        make,
        peers,
        flops / bench.floors["matrix_flops_per_s"],
        tokens * (HEADS + 2 * KV_HEADS) * DIM * 2,
        check,
    )


def pooled_block_mask(bench: Bench, tokens: int) -> None:
    """The mask of a prompt."""
    make = lambda: dict(  # noqa: E731
        q=bench.randn(1, HEADS, tokens, DIM), k=bench.randn(1, KV_HEADS, tokens, DIM)
    )
    spec = ops.specs()["pooled_block_mask"]

    def check(s: dict, out: tuple) -> bool:
        want = spec.reference(s["q"].double(), s["k"].double(), 0.2, None, 64, None, 0, 0, True)
        return bool((out != want).double().mean() < 1e-3)

    peers: dict[str, Callable] = {
        "eager": lambda s: spec.reference(s["q"], s["k"], 0.2, None, 64, None, 0, 0, True)
    }
    moved = tokens * (HEADS + KV_HEADS) * DIM * 2
    floor = moved / bench.floors["copy_bytes_per_s"]
    bench.add("pooled_block_mask", f"{tokens} tokens", make, peers, floor, moved, check)


def append(bench: Bench, tokens: int) -> None:
    half = DIM // 2

    def make() -> dict[str, Any]:
        pages = -(-tokens // PAGE)
        t = torch.arange(tokens)
        return dict(
            k=bench.randn(tokens, KV_HEADS, DIM),
            v=bench.randn(tokens, KV_HEADS, DIM),
            k_pages=bench.randn(pages, KV_HEADS, DIM, PAGE),
            v_pages=bench.randn(pages, KV_HEADS, PAGE, DIM),
            where=torch.stack([t // PAGE, t % PAGE, t], 1).to(bench.device),
            inv_freq=(10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)).to(
                bench.device
            ),
        )

    reference = ops.specs()["append"].reference

    def check(s: dict, out: None) -> bool:
        k, v = s["k_pages"].double(), s["v_pages"].double()
        reference(s["k"].double(), s["v"].double(), k, v, s["where"], s["inv_freq"])
        return near(s["k_pages"], k) and near(s["v_pages"], v)

    moved = 4 * tokens * KV_HEADS * DIM * (4 if bench.dry else 2)
    bench.add(
        "append",
        f"{tokens} tokens",
        make,
        {"torch": lambda s: reference(**s)},
        moved / bench.floors["copy_bytes_per_s"],
        moved,
        check,
    )


def merge(bench: Bench, rows: int) -> None:
    make = lambda: dict(  # noqa: E731
        o_a=bench.randn(rows, HEADS, DIM),
        lse_a=torch.randn(rows, HEADS, device=bench.device),
        o_b=bench.randn(rows, HEADS, DIM),
        lse_b=torch.randn(rows, HEADS, device=bench.device),
    )
    reference = ops.specs()["merge_states"].reference
    moved = 3 * rows * HEADS * DIM * (4 if bench.dry else 2)
    bench.add(
        "merge_states",
        f"{rows} rows",
        make,
        {"torch": lambda s: reference(**s)},
        moved / bench.floors["copy_bytes_per_s"],
        moved,
        lambda s, out: near(out[0], reference(**{k: x.double() for k, x in s.items()})[0]),
    )


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

    def check(s: dict, out: torch.Tensor) -> bool:
        return near(out, dense(s | {x: s[x].double() for x in "qkv"}))

    moved = 4 * length * 4 * DIM * (4 if bench.dry else 2)
    seen = length * (reach + 1) - reach * (reach + 1) / 2
    floor = max(
        moved / bench.floors["copy_bytes_per_s"],
        4 * 4 * seen * DIM / bench.floors["matrix_flops_per_s"],
    )
    label = f"{length} tokens, reach {reach}"
    bench.add("hstu_attention", label, make, {"torch": dense}, floor, moved, check)
