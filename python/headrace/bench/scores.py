# SPDX-License-Identifier: Apache-2.0
"""Scoring and selecting over the cached tokens of a long stream, as a benchmark measures it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .case import LLAMA_8B, Case, Dims, bound_call, dtype_name, rms_error
from .peers import Run, compiled

SIZE, KEPT = 64, 64  # tokens of a block, blocks that are retrieved
KINDS = ("mean", "bounds")


def over(layers: list[Any], f: Callable[[Any], object]) -> Callable[[], object]:
    """One call for every layer, together larger than a cache; gives what the last one gave."""

    def run() -> object:
        for layer in layers:
            last = f(layer)
        return last

    return run


def retrieve(
    tokens: int, layers: int, kind: str, dtype: torch.dtype = torch.bfloat16, dims: Dims = LLAMA_8B
) -> Case:
    """The best blocks of `tokens` for one query, scored by means or bounds, in every layer."""
    q = torch.randn(1, dims.heads, 1, dims.dim).to(dtype)
    shape = (1, dims.kv_heads, tokens // SIZE, dims.dim)
    low = [torch.randn(shape).to(dtype) for _ in range(layers)]
    stored = [(x, x + 1 if kind == "bounds" else None) for x in low]
    heads = "group" if kind == "bounds" else "sum"
    bound, axes = bound_call("block_score", q, *stored[0][:1], upper=stored[0][1], heads=heads)
    spec = ops.specs()["block_score"]
    grouped = q.view(1, dims.kv_heads, dims.group, 1, dims.dim)

    def ours(layer: tuple[Tensor, Tensor | None]) -> object:
        score = ops.block_score(q, layer[0], upper=layer[1], heads=heads)
        return ops.select(score, k=KEPT)

    def each_head(layer: tuple[Tensor, Tensor | None]) -> Tensor:  # as the papers' code does it
        if layer[1] is None:
            keys = layer[0].repeat_interleave(dims.group, 1)
            return (q @ keys.mT).mean(2).sum(1, True)
        both = torch.maximum(grouped * layer[0][:, :, None], grouped * layer[1][:, :, None])
        return both.sum(-1).sum(2)

    def folded(layer: tuple[Tensor, Tensor | None]) -> Tensor:
        if layer[1] is None:
            return (grouped.sum(2) @ layer[0].mT).sum(1)
        low_q, high_q = grouped.clamp(max=0).sum(2), grouped.clamp(min=0).sum(2)
        return (high_q @ layer[1].mT + low_q @ layer[0].mT)[:, :, 0]

    def chosen(score: Callable[[Any], Tensor]) -> Callable[[Any], object]:
        return lambda layer: score(layer).topk(KEPT).indices.sort()

    def alone(layer: tuple[Tensor, Tensor | None]) -> Tensor:
        return ops.block_score(q, layer[0], upper=layer[1], heads=heads)

    def more(compile: bool) -> dict[str, Run]:
        made = compiled(folded) if compile else {}
        results.update({name: partial(score, stored[0]) for name, score in made.items()})
        return {name: over(stored, chosen(score)) for name, score in made.items()}

    # What a rule chooses goes with its rounding, so that what is compared is the scores.
    scored = {"ours": alone, "torch, each head": each_head, "torch, folded": folded}
    results = {name: partial(score, stored[0]) for name, score in scored.items()}

    def check() -> tuple[float, float]:
        want = spec.reference(
            q.double(), low[0].double(), None if stored[0][1] is None else stored[0][1].double(),
            None, None, heads, "mean", 1, 1.0,
        )  # fmt: skip
        got = ops.block_score(q, *stored[0][:1], upper=stored[0][1], heads=heads)
        same = torch.equal(
            ops.select(got, k=KEPT)[0].long(), got.topk(KEPT).indices.sort().values.long()
        )
        return rms_error(got, want) if same else torch.inf, spec.tolerance(dtype, axes, bound)

    return Case(
        "block_score",
        f"{kind} {dtype_name(dtype)} {tokens} tokens, {layers} layers, and select",
        over(stored, ours),
        check,
        layers * spec.bytes(axes, bound),
        layers * spec.flops(axes, bound),
        over(stored, chosen(each_head)),
        "torch, each head",
        {"score alone": over(stored, alone)},
        {"torch, folded": over(stored, chosen(folded))},
        more,
        results=results,
        product=dtype,
    )


def bits(tokens: int, layers: int, dims: Dims = LLAMA_8B) -> Case:
    """Every token by 32 sign bits of its key in every kv head."""
    gen = torch.Generator().manual_seed(0)
    word = lambda *shape: torch.randint(-(2**31), 2**31, shape, generator=gen).int()  # noqa: E731
    q = word(1, dims.heads, 1, 1)
    stored = [word(1, dims.kv_heads, tokens, 1) for _ in range(layers)]
    bound, axes = bound_call("block_score", q, stored[0])
    spec = ops.specs()["block_score"]

    def peer(keys: Tensor) -> object:
        score = torch.zeros(tokens, dtype=torch.int32)
        for head, asked in enumerate(q[0, :, 0, 0].split(dims.group)):
            for x in asked:
                n = keys[0, head, :, 0] ^ x
                n = n - ((n >> 1) & 0x55555555)
                n = (n & 0x33333333) + ((n >> 2) & 0x33333333)
                n = (n + (n >> 4)) & 0x0F0F0F0F
                score += ((n * 0x01010101) >> 24) & 0xFF
        return 32 * dims.heads - 2 * score

    def check() -> tuple[float, float]:
        want = peer(stored[0])
        assert isinstance(want, Tensor)
        return float((ops.block_score(q, stored[0])[0, 0] != want).sum()), 0.0

    return Case(
        "block_score", f"bits {tokens} tokens, {layers} layers",
        over(stored, lambda keys: ops.block_score(q, keys)), check,
        layers * spec.bytes(axes, bound), layers * spec.flops(axes, bound),
        over(stored, peer), "torch, eager",
        more=lambda compile: (
            {name: over(stored, run) for name, run in compiled(peer).items()} if compile else {}
        ),
    )  # fmt: skip


def select(
    rows: int, size: int, k: int, policy: str = "top_k", dtype: torch.dtype = torch.float32
) -> Case:
    """Rows of scores; the peer sorts what torch's topk gives, or all of a row."""
    score = torch.randn(rows, size).to(dtype)
    options: dict[str, Any] = {"k": k} if policy == "top_k" else {"mass": 0.5}
    spec = ops.specs()["select"]
    bound, axes = bound_call("select", score[:, None], policy, **options)

    def peer() -> object:
        if policy == "top_k":
            return score.topk(k).indices.sort()
        weight = (score.float() - score.float().amax(-1, True)).exp()
        order = weight.argsort(dim=-1, descending=True, stable=True)
        held = weight.gather(-1, order).cumsum(-1)
        count = (held < 0.5 * held[:, -1:]).sum(-1)
        return [order[i, : int(n) + 1].sort() for i, n in enumerate(count)]

    def check() -> tuple[float, float]:
        got = ops.select(score[:4, None], policy, **options)
        arguments = spec.bind(score[:4, None], policy, **options)
        want = spec.reference(**arguments)
        return float((got[0] != want[0]).double().mean()), 0.0 if policy == "top_k" else 1e-2

    def by_partition() -> Tensor:
        order = np.argpartition(score.numpy(), size - k, -1)[:, size - k :]
        return torch.from_numpy(order).sort().values

    def listed() -> Tensor:
        index, count = ops.select(score, policy, **options)
        return torch.cat([row[: int(n)] for row, n in zip(index, count.flatten(), strict=True)])

    def told() -> Tensor:
        made: Any = peer()
        return torch.cat([row.values.flatten() for row in ([made] if policy == "top_k" else made)])

    return Case(
        "select", f"{policy} {rows} x {size}" + (f", {k}" if policy == "top_k" else "")
        + ("" if dtype == torch.float32 else f", {dtype_name(dtype)}"),
        lambda: ops.select(score, policy, **options), check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch, eager",
        rivals={"numpy, argpartition": by_partition}
        if policy == "top_k" and dtype == torch.float32 else {},
        results={"ours": listed, "torch, eager": told},
    )  # fmt: skip
