# SPDX-License-Identifier: Apache-2.0
"""Gathers, merges, moves and scatters of rows in Triton. Not yet seen running on a GPU.

A merge sorts rows by where they go, so that one program
adds up a survivor's members in their order: no atomics, the same bits every time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device

TILE = 4096  # elements of rows that a program moves at a time


@triton.jit(do_not_specialize=["size", "capacity"])
def keep_kernel(
    index, count, mask, kept, kept_count, size, capacity, heads,
    index_batch, index_head, count_batch, count_head, mask_batch, mask_head,
    MASKED: tl.constexpr, COUNTED: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Indices of one row, -1 behind them, and how many."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // heads, row % heads
    out = kept + row * capacity
    n = tl.zeros([], tl.int32)
    if MASKED:
        for start in range(0, size, B):
            i = start + tl.arange(0, B)
            m = tl.load(mask + b * mask_batch + h * mask_head + i, mask=i < size, other=0)
            m = (m != 0).to(tl.int32)
            at = n + tl.cumsum(m, 0) - m
            tl.store(out + at, i, mask=(m != 0) & (at < capacity))
            n += tl.sum(m, 0)
        n = tl.minimum(n, capacity)
    else:
        n = n + capacity
        if COUNTED:
            n = tl.load(count + b * count_batch + h * count_head)
            n = tl.maximum(tl.minimum(n, capacity), 0)
        for start in range(0, n, B):
            i = start + tl.arange(0, B)
            at = tl.load(index + b * index_batch + h * index_head + i, mask=i < n, other=-1)
            tl.store(out + i, tl.where((at >= 0) & (at < size), at, -1), mask=i < n)
    for start in range(n // B * B, capacity, B):
        i = start + tl.arange(0, B)
        tl.store(out + i, -1, mask=(i >= n) & (i < capacity))
    tl.store(kept_count + row, n)


@triton.jit(do_not_specialize=["capacity", "depth"])
def gather_kernel(
    x, y, kept, weights, sizes, capacity, depth, heads,
    x_batch, x_head, x_row, y_batch, y_head, y_row, weight_batch, weight_head,
    WEIGHED: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows that are kept, 0 behind them."""
    row = tl.program_id(2).to(tl.int64)
    b, h = row // heads, row % heads
    c = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD).to(tl.int64)
    at = tl.load(kept + row * capacity + c, mask=c < capacity, other=-1).to(tl.int64)
    wide = (d < depth)[None, :]
    source = x + b * x_batch + h * x_head + at[:, None] * x_row + d[None, :]
    value = tl.load(source, mask=(at >= 0)[:, None] & wide, other=0)
    tl.store(y + b * y_batch + h * y_head + c[:, None] * y_row + d[None, :], value,
             mask=(c < capacity)[:, None] & wide)  # fmt: skip
    if tl.program_id(1) == 0:
        w = tl.where(at >= 0, 1.0, 0.0)
        if WEIGHED:
            w = tl.load(weights + b * weight_batch + h * weight_head + at, mask=at >= 0, other=0)
        tl.store(sizes + row * capacity + c, w, mask=c < capacity)


@triton.jit(do_not_specialize=["capacity", "depth", "size"])
def merge_kernel(
    x, y, kept, order, starts, weights, sizes, capacity, depth, heads, size,
    x_batch, x_head, x_row, y_batch, y_head, y_row, weight_batch, weight_head,
    WEIGHED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One survivor's members, in order: their weighted mean."""
    row = tl.program_id(2).to(tl.int64)
    b, h = row // heads, row % heads
    c = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD).to(tl.int64)
    first = tl.load(starts + row * (capacity + 1) + c)
    last = tl.load(starts + row * (capacity + 1) + c + 1)
    at = tl.load(kept + row * capacity + c).to(tl.int64)
    mine = x + b * x_batch + h * x_head
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([BD], tl.float32)
    for m in range(first, last):
        r = tl.load(order + row * size + m).to(tl.int64)
        w = tl.full([], 1.0, tl.float32)
        if WEIGHED:
            w = tl.load(weights + b * weight_batch + h * weight_head + r)
        total += w
        acc += w * tl.load(mine + r * x_row + d, mask=d < depth, other=0).to(tl.float32)
    end = tl.where(at >= 0, depth, 0)
    alone = tl.load(mine + at * x_row + d, mask=d < end, other=0).to(tl.float32)
    mean = tl.where((last - first <= 1) | (total == 0), alone, acc / total)
    out = y + b * y_batch + h * y_head + c * y_row + d
    tl.store(out, mean.to(y.dtype.element_ty), mask=d < depth)
    if tl.program_id(1) == 0:
        tl.store(sizes + row * capacity + c, total)


@triton.jit(do_not_specialize=["capacity", "depth", "size"])
def inplace_kernel(
    x, index, count, size, capacity, depth, heads, x_batch, x_head, x_row,
    index_batch, index_head, count_batch, count_head,
    COUNTED: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A strip of columns of one batch entry and head. Rows move forward in order: those that are
    read lie at or behind all that are written next."""
    row = tl.program_id(1).to(tl.int64)
    b, h = row // heads, row % heads
    d = tl.program_id(0).to(tl.int64) * BD + tl.arange(0, BD).to(tl.int64)
    wide = (d < depth)[None, :]
    mine = x + b * x_batch + h * x_head
    n = capacity
    if COUNTED:
        n = tl.minimum(tl.load(count + b * count_batch + h * count_head), capacity)
    for start in range(0, n, BM):
        c = start + tl.arange(0, BM).to(tl.int64)
        at = tl.load(index + b * index_batch + h * index_head + c, mask=c < n, other=-1)
        at = at.to(tl.int64)
        moves = ((at > c) & (at < size) & (c < n))[:, None] & wide
        value = tl.load(mine + at[:, None] * x_row + d[None, :], mask=moves, other=0)
        tl.debug_barrier()  # a warp must not write what another has yet to read
        tl.store(mine + c[:, None] * x_row + d[None, :], value, mask=moves)


@triton.jit(do_not_specialize=["capacity", "depth", "size"])
def scatter_kernel(
    x, y, index, count, size, capacity, depth, heads, x_batch, x_head, x_row,
    y_batch, y_head, y_row, index_batch, index_head, count_batch, count_head,
    COUNTED: tl.constexpr, ALIGNED: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows to their places."""
    row = tl.program_id(2).to(tl.int64)
    b, h = row // heads, row % heads
    c = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD).to(tl.int64)
    n = capacity
    if COUNTED:
        n = tl.minimum(tl.load(count + b * count_batch + h * count_head), capacity)
    at = tl.load(index + b * index_batch + h * index_head + c, mask=c < n, other=-1).to(tl.int64)
    mask = ((at >= 0) & (at < size))[:, None] & (d < depth)[None, :]
    source = at if ALIGNED else c
    value = tl.load(x + b * x_batch + h * x_head + source[:, None] * x_row + d[None, :], mask=mask)
    tl.store(y + b * y_batch + h * y_head + at[:, None] * y_row + d[None, :], value, mask=mask)


def _pair(x):
    """Strides of batch and head, 0 along what there is once."""
    return (0, 0) if x is None else [0 if x.shape[i] == 1 else x.stride(i) for i in range(2)]


def _plain(x):
    """Codes as the bytes that they are."""
    return x.view(torch.uint8) if x.element_size() == 1 else x


def _tile(depth):
    """Rows and columns of a tile."""
    columns = min(1024, max(16, triton.next_power_of_2(depth)))
    return {"BM": max(1, TILE // columns // 4), "BD": columns, "num_warps": 4, **FUSION}


def _members(kept, target, size):
    """Rows [B, H, N] sorted by the survivor they belong to, and where each survivor's start."""
    capacity = kept.shape[-1]
    slots = torch.arange(capacity, device=kept.device).expand(kept.shape)
    slot = torch.full((*kept.shape[:2], size + 1), -1, device=kept.device, dtype=torch.int64)
    slot.scatter_(-1, kept.long().where((kept >= 0) & (kept < size), size), slots)
    slot[..., size] = -1
    t = target.long().expand(*kept.shape[:2], size)
    merged = slot.gather(-1, torch.where((t < 0) | (t >= size), size, t))
    home = torch.where(slot[..., :size] >= 0, slot[..., :size], merged)
    home = torch.where(home < 0, capacity, home)
    home, order = home.sort(dim=-1, stable=True)
    bounds = torch.arange(capacity + 1, device=kept.device).expand(*kept.shape[:2], capacity + 1)
    return order, torch.searchsorted(home, bounds.contiguous())


def compact(bound, axes, outs):
    """`headrace.ops.compact` on CUDA tensors (or, interpreted, small CPU tensors)."""
    x, index, count, mask = (bound[n] for n in ("x", "index", "count", "mask"))
    target, weights, (y, sizes, kept, kept_count) = bound["target"], bound["weights"], outs
    rows, capacity, depth = axes["B"] * axes["H"], axes["K"], axes["D"]
    if rows == 0:
        return
    with on_device("compact", x):
        keep_kernel[(rows,)](
            x if index is None else index, x if count is None else count,
            x if mask is None else mask.view(torch.uint8), kept, kept_count, axes["N"], capacity,
            axes["H"], *_pair(index), *_pair(count), *_pair(mask),
            MASKED=mask is not None, COUNTED=count is not None, B=1024, num_warps=4, **FUSION,
        )  # fmt: skip
        if capacity == 0:
            return
        tile = _tile(depth)
        strips = max(1, triton.cdiv(depth, tile["BD"]))
        w = (x if weights is None else weights, sizes)
        shape = (capacity, depth, axes["H"])
        strides = (*x.stride()[:3], *y.stride()[:3], *_pair(weights))
        if target is None:
            gather_kernel[(triton.cdiv(capacity, tile["BM"]), strips, rows)](
                _plain(x), _plain(y), kept, *w, *shape, *strides,
                WEIGHED=weights is not None, **tile,
            )  # fmt: skip
            return
        order, starts = _members(kept, target, axes["N"])
        tile.pop("BM")
        merge_kernel[(capacity, strips, rows)](
            x, y, kept, order, starts, *w, *shape, axes["N"], *strides,
            WEIGHED=weights is not None, **tile,
        )  # fmt: skip


def compact_inplace(bound, axes, outs):
    """`headrace.ops.compact_inplace`, likewise."""
    x, index, count = (bound[n] for n in ("x", "index", "count"))
    rows, depth = axes["B"] * axes["H"], axes["D"]
    if rows == 0 or depth == 0 or axes["K"] == 0:
        return
    tile = _tile(depth)
    tile["BM"] = max(tile["BM"], TILE // tile["BD"])
    with on_device("compact_inplace", x):
        inplace_kernel[(triton.cdiv(depth, tile["BD"]), rows)](
            _plain(x), index, index if count is None else count, axes["N"],
            axes["K"], depth, axes["H"], *x.stride()[:3], *_pair(index), *_pair(count),
            COUNTED=count is not None, **tile,
        )  # fmt: skip


def scatter_back(bound, axes, outs):
    """`headrace.ops.scatter_back`, likewise."""
    x, y, index, count = (bound[n] for n in ("x", "y", "index", "count"))
    rows, depth = axes["B"] * axes["H"], axes["D"]
    if rows == 0 or depth == 0 or axes["K"] == 0:
        return
    tile = _tile(depth)
    grid = (triton.cdiv(axes["K"], tile["BM"]), triton.cdiv(depth, tile["BD"]), rows)
    with on_device("scatter_back", x):
        scatter_kernel[grid](
            _plain(x), _plain(y), index, index if count is None else count, axes["N"],
            axes["K"], depth, axes["H"], *x.stride()[:3], *y.stride()[:3], *_pair(index),
            *_pair(count), COUNTED=count is not None, ALIGNED=bound["aligned"], **tile,
        )  # fmt: skip
