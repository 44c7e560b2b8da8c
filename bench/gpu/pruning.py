# SPDX-License-Identifier: Apache-2.0
"""Pruning and retrieval on a GPU: inputs, peers, floors and checks of its ops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .measure import DIM, HEADS, KV_HEADS, Bench
from .work import Step


def block_score(bench: Bench, tokens: int) -> None:
    """Means of blocks of 64 tokens for one query of all heads."""
    make = lambda: dict(  # noqa: E731
        q=bench.randn(1, HEADS, 1, DIM), keys=bench.randn(1, KV_HEADS, tokens // 64, DIM)
    )

    def eager(s: dict) -> torch.Tensor:
        return (s["q"].view(1, KV_HEADS, -1, 1, DIM).sum(2) @ s["keys"].mT).sum(1)

    def check(s: dict, out: torch.Tensor) -> list:
        return [(out, eager({n: x.double() for n, x in s.items()}).view(out.shape), 0.1)]

    peers: dict[str, Step] = {"eager": eager}
    bench.add("block_score", f"{tokens} tokens", make, peers, check, {"eager": check})


def select(bench: Bench, size: int, k: int) -> None:
    """The best of one row of scores."""

    def make() -> dict[str, Any]:
        score = torch.randn(1, 1, size, device=bench.device)
        return dict(score=score, policy="top_k", k=k)

    def check(s: dict, out: tuple) -> bool:
        return torch.equal(out[0].long(), s["score"].topk(k).indices.sort().values)

    peers: dict[str, Step] = {"topk": lambda s: s["score"].topk(k).indices.sort()}
    bench.add("select", f"{k} of {size}", make, peers, check)


def segment_reduce(bench: Bench, tokens: int) -> None:
    """Keys added to the sums and counts of blocks of 64 tokens."""

    def make() -> dict[str, Any]:
        ids = (torch.arange(tokens, device=bench.device) // 64).int()
        total = torch.zeros(tokens // 64, KV_HEADS, DIM, device=bench.device)
        return dict(x=bench.randn(tokens, KV_HEADS, DIM), ids=ids, total=total, count=ids[::64] * 0)

    def eager(s: dict) -> torch.Tensor:
        return s["total"].index_add_(0, s["ids"].long(), s["x"].float())

    def check(s: dict, out: None) -> list:  # on fresh sums: those of the timed calls have piled up
        total = torch.zeros_like(s["total"])
        torch.ops.headrace.segment_reduce(s["x"], s["ids"], total)
        return [(total, s["x"].double().view(-1, 64, KV_HEADS, DIM).sum(1))]

    bench.add("segment_reduce", f"{tokens} keys", make, {"eager": eager}, check)


def attention_mass(bench: Bench, tokens: int, asked: int) -> None:
    """What the last queries of a prompt look at."""
    make = lambda: dict(  # noqa: E731
        q=bench.randn(1, HEADS, asked, DIM), k=bench.randn(1, KV_HEADS, tokens, DIM)
    )

    def eager(s: dict) -> torch.Tensor:
        k = s["k"].repeat_interleave(HEADS // KV_HEADS, 1)
        seen = torch.ones(asked, tokens, dtype=torch.bool, device=k.device).tril(tokens - asked)
        scores = (s["q"] @ k.mT * DIM**-0.5).masked_fill(~seen, -torch.inf)
        p = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)
        return p.mean(2).view(1, KV_HEADS, -1, tokens).mean(2)

    def check(s: dict, out: torch.Tensor) -> list:
        return [(out, eager({n: x.double() for n, x in s.items()}).view(out.shape), 1e-3)]

    peers: dict[str, Step] = {"eager": eager}
    bench.add("attention_mass", f"{asked} of {tokens}", make, peers, check, {"eager": check})


def assign(bench: Bench, rows: int, candidates: int) -> None:
    """The nearest of the candidates by cosine."""
    make = lambda: dict(  # noqa: E731
        x=bench.randn(1, rows, DIM), c=bench.randn(1, candidates, DIM)
    )

    def similarity(s: dict) -> torch.Tensor:
        return F.normalize(s["x"], dim=-1) @ F.normalize(s["c"], dim=-1).mT

    def check(s: dict, out: Any) -> list:
        """What each row is as near to as it says, and to none nearer."""
        exact = similarity({n: x.double() for n, x in s.items()})
        found = exact.gather(-1, out[0].long().view(*exact.shape[:-1], 1))[..., 0]
        return [(out[1].view(found.shape), found), (out[1].view(found.shape), exact.amax(-1))]

    peers: dict[str, Step] = {"eager": lambda s: similarity(s).max(-1)}
    bench.add("assign", f"{rows} to {candidates}", make, peers, check)


def similarity(bench: Bench, tokens: int, depth: int) -> None:
    """Cosine of every token with the frame before."""
    make = lambda: dict(  # noqa: E731
        x=bench.randn(1, 1, tokens, depth), ref=bench.randn(1, 1, tokens, depth)
    )

    def eager(s: dict) -> torch.Tensor:
        return F.cosine_similarity(s["x"], s["ref"], -1)

    def check(s: dict, out: torch.Tensor) -> list:
        return [(out, eager({n: x.double() for n, x in s.items()}).view(out.shape), 0.1)]

    peers: dict[str, Step] = {"eager": eager}
    bench.add("similarity", f"{tokens} x {depth}", make, peers, check, {"eager": check})


def compact(bench: Bench, tokens: int, depth: int) -> None:
    """The rows of a mask that keeps 15%."""

    def make() -> dict[str, Any]:
        mask = torch.rand(1, 1, tokens, device=bench.device) < 0.15
        return dict(x=bench.randn(1, 1, tokens, depth), mask=mask, capacity=tokens // 5)

    def check(s: dict, out: tuple) -> bool:
        return torch.equal(out[0][0, 0, : int(out[3])], s["x"][s["mask"]][: tokens // 5])

    peers: dict[str, Step] = {"eager": lambda s: s["x"][s["mask"]]}
    bench.add("compact", f"15% of {tokens} x {depth}", make, peers, check)


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

    def check(s: dict, out: None) -> bool:  # on fresh rows: those of the timed calls have moved
        given = make()
        want = {n: x.clone() for n, x in given.items()}
        eager(want)
        getattr(torch.ops.headrace, op)(**given)
        if op == "scatter_back":
            return torch.equal(given["y"], want["y"])
        return torch.equal(given["x"][:, :, : len(at)], want["x"][:, :, : len(at)])

    what = f"a seventh of {tokens} x {depth}"
    bench.add(op, what, make, {"eager": eager}, check)
