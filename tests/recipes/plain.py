# SPDX-License-Identifier: Apache-2.0
"""Inputs for recipes, and what selection by rank means in plain Python."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("normal", "ties", "zeros")
SIZES = (1, 2, 31, 67, 130)
BUDGETS = (0, 1, 7, 40, 500)  # none, fewer and more than there are


def tensors(seed: int, n: int, kind: str = "normal", asked: int = 9, dim: int = 32):
    """q [2, 4, asked, dim], k and v [2, 2, n, dim]: normal, all alike, or some of length 0."""
    gen = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, h, m, dim, generator=gen) for h, m in ((4, asked), (2, n), (2, n)))
    if kind == "ties":
        k, v = k[:, :, :1].expand_as(k).clone(), v[:, :, :1].expand_as(v).clone()
    if kind == "zeros":
        for x in (k, v):
            x[torch.rand(x.shape[:3], generator=gen) < 0.4] = 0.0
    return q, k, v


def best(score: Tensor, budget: int, first: int = 0, last: int = 0, lengths=None) -> list:
    """Per batch entry and head: the forced ones and the best others by (score, lower index)."""
    kept = []
    for b, heads in enumerate(score.tolist()):
        rows = []
        for s in heads:
            n = len(s) if lengths is None else int(lengths[b])
            forced = {j for j in range(n) if j < first or j >= n - last}
            rest = sorted((j for j in range(n) if j not in forced and s[j] > -math.inf),
                          key=lambda j, s=s: (-s[j], j))  # fmt: skip
            rows.append(sorted(forced | set(rest[: max(0, budget - len(forced))])))
        kept.append(rows)
    return kept


def listed(kept: tuple[Tensor, Tensor]) -> list:
    """Indices that a recipe keeps, as lists; what lies behind them is -1."""
    index, count = kept
    assert index.dtype == count.dtype == torch.int32
    inside = torch.arange(index.shape[-1]) < count[..., None]
    assert (index[~inside] == -1).all()
    return [[row[:n] for row, n in zip(rows, ns, strict=True)]
            for rows, ns in zip(index.tolist(), count.tolist(), strict=True)]  # fmt: skip


def near(got: Tensor, want: Tensor, tolerance: float = 2e-5) -> None:
    """fp32 against fp64, relative to the largest value."""
    assert got.shape == want.shape, (got.shape, want.shape)
    assert got.dtype == torch.float32
    assert torch.equal(got.isfinite(), want.isfinite())
    there = want.isfinite()
    error = (got.double() - want.double())[there].abs()
    top = want[there].abs().max().clamp(min=1.0) if there.any() else 1.0
    assert (error <= tolerance * top).all(), float(error.max())


def attention(q: Tensor, k: Tensor) -> Tensor:
    """fp64 softmax [B, Hq, W, N], the last query at the last key; rows that see nothing give 0."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    asked, n = q.shape[2], k.shape[2]
    hidden = torch.arange(n) > torch.arange(asked)[:, None] + n - asked
    logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
    return logits.softmax(-1).nan_to_num(0.0)


def unit(x: Tensor) -> Tensor:
    """fp64 rows of length 1; rows of 0 stay."""
    norm = x.double().norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x.double() / norm, 0.0)


def frames(seed: int, count: int, n: int, kind: str = "normal", dim: int = 48) -> Tensor:
    """fp32 [count, n, dim] that drifts from frame to frame: as `tensors`, and a repeated frame."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, dim, generator=gen).cumsum(0)
    if kind == "ties":
        x = x[:, :1].expand_as(x).clone()
    if kind == "zeros":
        x[torch.rand(count, n, generator=gen) < 0.4] = 0.0
    if count > 2:
        x[2] = x[1]
    return x


def flat(kept: tuple[Tensor, Tensor]) -> list:
    """As `listed`, of indices [B, K] and counts [B]."""
    return [rows[0] for rows in listed((kept[0][:, None], kept[1][:, None]))]
