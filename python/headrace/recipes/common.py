# SPDX-License-Identifier: Apache-2.0
"""What recipes share. Keys and values are [B, Hkv, N, D]; of each row the first `lengths` count."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value

Kept = tuple[Tensor, Tensor]  # int32 indices [B, H, capacity], ascending, then -1; int32 counts


def best(
    name: str,
    score: Tensor,
    budget: int,
    *,
    first: int = 0,
    last: int = 0,
    lengths: Tensor | None = None,
    lowest: bool = False,
) -> Kept:
    """The `budget` best of every row of score [B, H, N], the first and last ones in any case."""
    whole_number(name, "budget", budget, 0)
    whole_number(name, "first", first, 0)
    room = min(score.shape[-1], max(budget, first + last))
    return ops.select(
        score, k=budget, first=first, last=last, lengths=lengths, lowest=lowest, capacity=room
    )


def whole_number(name: str, argument: str, value: int, least: int) -> None:
    """Raises ValueError for a number below `least`."""
    if value < least:
        raise bad_value(name, argument, f"{least} or more", value)


def summary(
    k: Tensor, size: int, names: tuple[str, ...], lengths: Tensor | None = None, skip: int = 0
) -> dict[str, Tensor]:
    """total, low, high or unit [B, Hkv, M, D] (and count [B, Hkv, M]) of blocks of `size` rows.

    A size of 0 makes one block of all. The first `skip` rows are left out.
    """
    batch, heads, n, dim = k.shape
    size = size or max(n, 1)
    blocks = -(-n // size)
    at = torch.arange(n, device=k.device)
    block = torch.arange(batch * heads, device=k.device)[:, None] * blocks + at // size
    there = (at >= skip).expand(batch, heads, n)
    if lengths is not None:
        there = there & (at < lengths[:, None, None])
    ids = torch.where(there.flatten(0, 1), block, -1).flatten().int()
    start = {"total": 0.0, "unit": 0.0, "low": torch.inf, "high": -torch.inf}
    shape = (batch * heads * blocks, 1, dim)
    states = {
        name: torch.zeros(shape[0], dtype=torch.int32, device=k.device)
        if name == "count"
        else torch.full(shape, start[name], device=k.device)
        for name in names
    }
    ops.segment_reduce(k.reshape(-1, 1, dim), ids, **states)
    return {
        name: s.view(batch, heads, blocks) if name == "count" else s.view(batch, heads, blocks, dim)
        for name, s in states.items()
    }


def likeness(k: Tensor, ref: Tensor) -> Tensor:
    """Of every row of k [B, H, N, D] its unit vector times ref [B, H, 1, D]; 0 for rows of 0."""
    cos = ops.similarity(k.flatten(0, 1), ref.flatten(0, 1), "cos")
    return cos.view(k.shape[:3]) * torch.linalg.vector_norm(ref, dim=-1)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, H, N, ...] by index [B, H or 1, K]; those of -1 are row 0."""
    index = index.long().clamp(min=0).expand(*x.shape[:2], -1)
    index = index.view(*index.shape, *(1,) * (x.ndim - 3)).expand(*index.shape, *x.shape[3:])
    return x.gather(2, index)
