# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu.py times: inputs, peers, floors and checks of every op."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from headrace.kernels.lora.reference import unpack

from headrace import ops
from headrace.adapters import LoraRoute, quantize_rows

if TYPE_CHECKING:
    from gpu import Bench

HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 64
UNLIMITED = 2**62


def near(got: torch.Tensor, want: torch.Tensor, allowed: float = 1e-2) -> bool:
    """RMS error relative to the RMS of `want`; NaN is never near."""
    got, want = got.double(), want.double()
    return bool((got - want).square().mean().sqrt() <= allowed * want.square().mean().sqrt())


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


def block_score(bench: Bench, tokens: int) -> None:
    """Means of blocks of 64 tokens for one query of all heads."""
    make = lambda: dict(  # noqa: E731
        q=bench.randn(1, HEADS, 1, DIM), keys=bench.randn(1, KV_HEADS, tokens // 64, DIM)
    )

    def eager(s: dict) -> torch.Tensor:
        return (s["q"].view(1, KV_HEADS, -1, 1, DIM).sum(2) @ s["keys"].mT).sum(1)

    moved = tokens // 64 * KV_HEADS * DIM * (4 if bench.dry else 2)
    floor = moved / bench.floors["copy_bytes_per_s"]
    check = lambda s, out: near(out, eager({n: x.double() for n, x in s.items()}))  # noqa: E731
    bench.add("block_score", f"{tokens} tokens", make, {"eager": eager}, floor, moved, check)


def select(bench: Bench, size: int, k: int) -> None:
    """The best of one row of scores."""

    def make() -> dict[str, Any]:
        score = torch.randn(1, 1, size, device=bench.device)
        return dict(score=score, policy="top_k", k=k)

    def check(s: dict, out: tuple) -> bool:
        return torch.equal(out[0].long(), s["score"].topk(k).indices.sort().values)

    peers = {"topk": lambda s: s["score"].topk(k).indices.sort()}
    moved = 4 * (size + k)
    floor = moved / bench.floors["copy_bytes_per_s"]
    bench.add("select", f"{k} of {size}", make, peers, floor, moved, check)


def segment_reduce(bench: Bench, tokens: int) -> None:
    """Keys added to the sums and counts of blocks of 64 tokens."""

    def make() -> dict[str, Any]:
        ids = (torch.arange(tokens, device=bench.device) // 64).int()
        total = torch.zeros(tokens // 64, KV_HEADS, DIM, device=bench.device)
        return dict(x=bench.randn(tokens, KV_HEADS, DIM), ids=ids, total=total, count=ids[::64] * 0)

    def eager(s: dict) -> torch.Tensor:
        return s["total"].index_add_(0, s["ids"].long(), s["x"].float())

    def check(s: dict, out: None) -> bool:  # on fresh sums: those of the timed calls have piled up
        total = torch.zeros_like(s["total"])
        torch.ops.headrace.segment_reduce(s["x"], s["ids"], total)
        return near(total, s["x"].double().view(-1, 64, KV_HEADS, DIM).sum(1))

    moved = tokens * KV_HEADS * DIM * ((4 if bench.dry else 2) + 8 / 64)
    floor = moved / bench.floors["copy_bytes_per_s"]
    bench.add("segment_reduce", f"{tokens} keys", make, {"eager": eager}, floor, moved, check)


def attention_mass(bench: Bench, tokens: int, asked: int) -> None:
    """What the last queries of a prompt look at."""
    make = lambda: dict(  # noqa: E731
        q=bench.randn(1, HEADS, asked, DIM), k=bench.randn(1, KV_HEADS, tokens, DIM)
    )

    def eager(s: dict) -> torch.Tensor:
        k = s["k"].repeat_interleave(HEADS // KV_HEADS, 1)
        seen = torch.ones(asked, tokens, dtype=torch.bool, device=k.device).tril(tokens - asked)
        p = (s["q"] @ k.mT * DIM**-0.5).masked_fill(~seen, -torch.inf).float().softmax(-1)
        return p.mean(2).view(1, KV_HEADS, -1, tokens).mean(2)

    moved = 2 * tokens * KV_HEADS * DIM * (4 if bench.dry else 2)
    flops = 4 * HEADS * asked * tokens * DIM
    floors = bench.floors
    floor = max(moved / floors["copy_bytes_per_s"], flops / floors["matrix_flops_per_s"])
    check = lambda s, out: near(out, eager(s), 2e-2)  # noqa: E731
    what = f"{asked} of {tokens}"
    bench.add("attention_mass", what, make, {"eager": eager}, floor, moved, check)


def assign(bench: Bench, rows: int, candidates: int) -> None:
    """The nearest of the candidates by cosine."""
    make = lambda: dict(  # noqa: E731
        x=bench.randn(1, rows, DIM), c=bench.randn(1, candidates, DIM)
    )

    def similarity(s: dict) -> torch.Tensor:
        return F.normalize(s["x"], dim=-1) @ F.normalize(s["c"], dim=-1).mT

    moved = (rows + candidates) * DIM * (4 if bench.dry else 2) + 8 * rows
    flops = 2 * rows * candidates * DIM
    floors = bench.floors
    floor = max(moved / floors["copy_bytes_per_s"], flops / floors["matrix_flops_per_s"])
    peers = {"eager": lambda s: similarity(s).max(-1)}
    check = lambda s, out: near(out[1], similarity(s).amax(-1))  # noqa: E731
    bench.add("assign", f"{rows} to {candidates}", make, peers, floor, moved, check)


def similarity(bench: Bench, tokens: int, depth: int) -> None:
    """Cosine of every token with the frame before."""
    make = lambda: dict(  # noqa: E731
        x=bench.randn(1, 1, tokens, depth), ref=bench.randn(1, 1, tokens, depth)
    )

    def eager(s: dict) -> torch.Tensor:
        return F.cosine_similarity(s["x"], s["ref"], -1)

    moved = 2 * tokens * depth * (4 if bench.dry else 2)
    floor = moved / bench.floors["copy_bytes_per_s"]
    check = lambda s, out: near(out, eager({n: x.double() for n, x in s.items()}))  # noqa: E731
    bench.add("similarity", f"{tokens} x {depth}", make, {"eager": eager}, floor, moved, check)


def compact(bench: Bench, tokens: int, depth: int) -> None:
    """The rows of a mask that keeps 15%."""

    def make() -> dict[str, Any]:
        mask = torch.rand(1, 1, tokens, device=bench.device) < 0.15
        return dict(x=bench.randn(1, 1, tokens, depth), mask=mask, capacity=tokens // 5)

    def check(s: dict, out: tuple) -> bool:
        return torch.equal(out[0][0, 0, : int(out[3])], s["x"][s["mask"]][: tokens // 5])

    peers = {"eager": lambda s: s["x"][s["mask"]]}
    moved = int(0.35 * tokens) * depth * (4 if bench.dry else 2)
    floor = moved / bench.floors["copy_bytes_per_s"]
    bench.add("compact", f"15% of {tokens} x {depth}", make, peers, floor, moved, check)


def move(bench: Bench, op: str, tokens: int, depth: int) -> None:
    """Every seventh row: to the front of its own tensor, or from another one to its place."""
    at = torch.arange(0, tokens, 7, device=bench.device)

    def make() -> dict[str, Any]:
        given = dict(x=bench.randn(1, 1, tokens, depth), index=at.int()[None, None])
        if op == "scatter_back":
            given = dict(y=given["x"]) | given | dict(x=bench.randn(1, 1, len(at), depth))
        return given

    def eager(s: dict) -> None:
        if op == "scatter_back":
            s["y"][:, :, at] = s["x"]
        else:
            s["x"][:, :, : len(at)] = s["x"][:, :, at]

    def check(s: dict, out: None) -> bool:
        return op != "scatter_back" or torch.equal(s["y"][:, :, at], s["x"])

    moved = 2 * len(at) * depth * (4 if bench.dry else 2)
    floor = moved / bench.floors["copy_bytes_per_s"]
    bench.add(op, f"a seventh of {tokens} x {depth}", make, {"eager": eager}, floor, moved, check)


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
        wide = torch.promote_types(rows[0].dtype, torch.float32)
        for f in range(frames):
            q, k, v, q_hat, k_hat = (x[:, f].to(wide) for x in rows)
            state = state + k_hat.mT @ (beta[:, f] * (v - k_hat @ state.to(wide)))
            norm = norm + k.mT @ (beta[:, f] * (1 - k @ norm.to(wide)))
            outs.append((q_hat @ state / (q @ norm + 1e-6)).transpose(1, 2))
        return torch.stack(outs, 1).reshape(tokens, heads, dim)

    def check(s: dict, out: torch.Tensor) -> bool:
        wide = {n: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                for n, x in s.items()}  # fmt: skip
        return near(out, dense(wide))

    moved = 6 * tokens * heads * dim * (4 if bench.dry else 2) + 4 * streams * heads * dim * dim
    floor = max(
        moved / bench.floors["copy_bytes_per_s"],
        6 * tokens * heads * dim * dim / bench.floors["matrix_flops_per_s"],
    )
    label = f"{streams} streams, {frames} frames of {size}"
    bench.add("frame_delta_rule", label, make, {"torch fp32": dense}, floor, moved, check)
