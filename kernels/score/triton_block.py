# SPDX-License-Identifier: Apache-2.0
"""`block_score` in Triton: products of folded queries with rows, then small reductions in torch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device, power_of_two

TILE = 8192  # elements of stored rows that a program takes at a time


@triton.jit
def _where(index, batch, index_batch, i, length, stored, INDEXED: tl.constexpr):
    """Numbers of the stored rows i, -1 for what does not count."""
    there = i < length
    if INDEXED:
        row = tl.load(index + batch * index_batch + i, mask=there, other=-1).to(tl.int64)
        return tl.where((row >= 0) & (row < stored), row, -1)
    return tl.where(there, i, -1)


@triton.jit
def _bits(x):
    """Bits that are set in 32-bit words."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24) & 0xFF


@triton.jit
def _scores(
    q, low_q, keys, upper, row, row_stride, upper_stride,
    D: tl.constexpr, BD: tl.constexpr, BITS: tl.constexpr, BOUNDS: tl.constexpr,
):  # fmt: skip
    """fp32 [rows] of one query."""
    d = tl.arange(0, BD)
    mask = (row >= 0)[:, None] & (d < D)[None, :]
    k = tl.load(keys + row[:, None] * row_stride + d[None, :], mask=mask, other=0)
    x = tl.load(q + d, mask=d < D, other=0)
    if BITS:
        apart = _bits(k.to(tl.uint32, bitcast=True) ^ x.to(tl.uint32, bitcast=True)[None, :])
        apart = tl.where((d < D)[None, :], apart.to(tl.int32), 0)
        return 32.0 * D - 2.0 * tl.sum(apart, 1).to(tl.float32)
    if BOUNDS:
        u = tl.load(upper + row[:, None] * upper_stride + d[None, :], mask=mask, other=0)
        y = tl.load(low_q + d, mask=d < D, other=0)
        return tl.sum(u.to(tl.float32) * x[None, :] + k.to(tl.float32) * y[None, :], 1)
    return tl.sum(k.to(tl.float32) * x[None, :], 1)


@triton.jit(do_not_specialize=["rows", "stored", "queries", "blocks", "size", "kv_heads"])
def block_score_kernel(
    q, low_q, keys, upper, index, lengths, raw, rows, stored, queries, blocks, size, kv_heads,
    key_batch, key_head, key_row, upper_batch, upper_head, upper_row, index_batch,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BITS: tl.constexpr,
    BOUNDS: tl.constexpr, INDEXED: tl.constexpr, RAGGED: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Raw scores [B, Hkv, queries, blocks] of a tile of rows, or of one block of several rows."""
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    keys += batch * key_batch + head * key_head
    upper += batch * upper_batch + head * upper_head
    which = (batch * kv_heads + head) * queries
    length = rows
    if RAGGED:
        length = tl.minimum(rows, tl.load(lengths + batch))
    first = tl.program_id(0).to(tl.int64)
    if SINGLE:
        i = first * BN + tl.arange(0, BN).to(tl.int64)
        row = _where(index, batch, index_batch, i, length, stored, INDEXED)
        for r in range(0, queries):
            at = (which + r) * D
            s = _scores(q + at, low_q + at, keys, upper, row, key_row, upper_row, D, BD, BITS,
                        BOUNDS)  # fmt: skip
            s = tl.where(row >= 0, s, float("-inf"))
            tl.store(raw + (which + r) * blocks + i, s, mask=i < blocks)
    else:
        begin = first * size
        end = tl.minimum(begin + size, rows)
        for r in range(0, queries):
            at = (which + r) * D
            best = tl.full([BN], float("-inf"), tl.float32)
            for start in range(begin, end, BN):
                i = start + tl.arange(0, BN).to(tl.int64)
                row = _where(index, batch, index_batch, i, tl.minimum(length, end), stored, INDEXED)
                s = _scores(q + at, low_q + at, keys, upper, row, key_row, upper_row, D, BD, BITS,
                            BOUNDS)  # fmt: skip
                best = tl.maximum(best, tl.where(row >= 0, s, float("-inf")))
            tl.store(raw + (which + r) * blocks + first, tl.max(best, 0))


def folded(bound, axes, group):
    """Queries [B, Hkv, rows, D] with the sums that may come before the product, in their two
    parts for bounds, and whether the queries of a head were summed."""
    q, bits = bound["q"], not bound["q"].is_floating_point()
    pooled = bound["block_size"] == 1 and bound["queries"] != "max" and not bits
    q = q.reshape(axes["B"], axes["Hkv"], group, axes["W"], axes["D"])
    if bits:
        return q.flatten(2, 3).contiguous(), None, False
    parts = [q.float()]
    if bound["upper"] is not None:
        parts = [parts[0].clamp(min=0), parts[0].clamp(max=0)]
    if pooled:
        parts = [x.mean(3, True) if bound["queries"] == "mean" else x.sum(3, True) for x in parts]
        if bound["heads"] in ("group", "sum"):
            parts = [x.sum(2, True) for x in parts]
    parts = [x.flatten(2, 3).contiguous() for x in parts]
    return parts[0], parts[-1], pooled


def block_score(bound, axes, outs):
    """`headrace.ops.block_score` on CUDA tensors (or, interpreted, small CPU tensors)."""
    keys, upper, index, (out,) = bound["keys"], bound["upper"], bound["index"], outs
    if out.numel() == 0:
        return
    group = axes["Hq"] // axes["Hkv"]
    q, low_q, pooled = folded(bound, axes, group)
    rows, blocks, size = axes["R"], axes["M"], min(bound["block_size"], max(1, axes["R"]))
    width = triton.next_power_of_2(axes["D"])
    tile = max(16, min(128, TILE // width))
    tile = min(tile, power_of_two(rows if size == 1 else size))
    raw = keys.new_empty((axes["B"], axes["Hkv"], q.shape[2], blocks), dtype=torch.float32)
    spread = lambda x: [0 if x.shape[0] == 1 else x.stride(0), *x.stride()[1:3]]  # noqa: E731
    grid = (triton.cdiv(blocks, tile) if size == 1 else blocks, *raw.shape[1::-1])
    with on_device("block_score", keys):
        block_score_kernel[grid](
            q, q if low_q is None else low_q, keys, keys if upper is None else upper,
            q if index is None else index, q if bound["lengths"] is None else bound["lengths"],
            raw, rows, axes["N"], q.shape[2], blocks, size, axes["Hkv"], *spread(keys),
            *spread(keys if upper is None else upper),
            0 if index is None or index.shape[0] == 1 else index.stride(0),
            D=axes["D"], BD=width, BN=tile, BITS=not bound["q"].is_floating_point(),
            BOUNDS=upper is not None, INDEXED=index is not None,
            RAGGED=bound["lengths"] is not None, SINGLE=size == 1, num_warps=4, **FUSION,
        )  # fmt: skip
    s = raw if pooled else raw.view(*raw.shape[:2], group, axes["W"], blocks)
    if not pooled:
        s = {"mean": s.mean, "sum": s.sum, "max": s.amax}[bound["queries"]](3)
    reduce = {
        "each": lambda: s.flatten(1, 2),
        "group": lambda: s.sum(2),
        "group_max": lambda: s.amax(2),
        "sum": lambda: s.sum((1, 2))[:, None],
        "max": lambda: s.amax((1, 2))[:, None],
    }
    torch.mul(reduce[bound["heads"]](), bound["scale"], out=out)
