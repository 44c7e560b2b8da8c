# SPDX-License-Identifier: Apache-2.0
"""Pruning and retrieval on a GPU: inputs, peers, floors and checks of its ops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .measure import DIM, HEADS, KV_HEADS, Bench, near


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
