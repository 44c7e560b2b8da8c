# SPDX-License-Identifier: Apache-2.0
"""`segment_reduce` in Triton: rows are sorted by segment, a program adds those of one in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device

COLUMNS = 1024  # that a program takes at a time


@triton.jit
def segment_kernel(
    x, order, starts, total, low, high, unit, count, x_row, x_head, total_row, total_head,
    low_row, low_head, high_row, high_head, unit_row, unit_head, count_row,
    D: tl.constexpr, BD: tl.constexpr, TOTAL: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, UNIT: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Some columns of one head of one segment."""
    segment, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    mask = d < D
    begin, end = tl.load(starts + segment), tl.load(starts + segment + 1)
    x += head * x_head
    total += segment * total_row + head * total_head + d
    low += segment * low_row + head * low_head + d
    high += segment * high_row + head * high_head + d
    unit += segment * unit_row + head * unit_head + d
    if begin < end:
        t = (
            tl.load(total, mask=mask, other=0.0).to(tl.float32)
            if TOTAL
            else tl.zeros([BD], tl.float32)
        )
        u = (
            tl.load(unit, mask=mask, other=0.0).to(tl.float32)
            if UNIT
            else tl.zeros([BD], tl.float32)
        )
        lo = (
            tl.load(low, mask=mask, other=0.0).to(tl.float32) if LOW else tl.zeros([BD], tl.float32)
        )
        hi = (
            tl.load(high, mask=mask, other=0.0).to(tl.float32)
            if HIGH
            else tl.zeros([BD], tl.float32)
        )
        for i in range(begin, end):
            at = x + tl.load(order + i) * x_row
            row = tl.load(at + d, mask=mask, other=0.0).to(tl.float32)
            t += row
            lo = tl.minimum(lo, row)
            hi = tl.maximum(hi, row)
            if UNIT:
                square = tl.zeros([BD], tl.float32)
                for first in range(0, D, BD):
                    c = first + tl.arange(0, BD)
                    part = tl.load(at + c, mask=c < D, other=0.0).to(tl.float32)
                    square += part * part
                norm = tl.sqrt(tl.sum(square, 0))
                u += tl.where(norm > 0, row / tl.where(norm > 0, norm, 1.0), 0.0)
        if TOTAL:
            tl.store(total, t, mask=mask)
        if LOW:
            tl.store(low, lo.to(low.dtype.element_ty), mask=mask)
        if HIGH:
            tl.store(high, hi.to(high.dtype.element_ty), mask=mask)
        if UNIT:
            tl.store(unit, u, mask=mask)
        if COUNT:
            first = (head == 0) & (tl.program_id(2) == 0)
            at = count + segment * count_row
            tl.store(at, tl.load(at, mask=first) + (end - begin).to(tl.int32), mask=first)


def segment_reduce(bound, axes, outs):
    """`headrace.ops.segment_reduce` on CUDA tensors (or, interpreted, small CPU tensors)."""
    x, ids, segments = bound["x"], bound["ids"].long(), axes["S"]
    names = ("total", "low", "high", "unit")
    if axes["T"] == 0 or segments == 0:
        return
    if axes["H"] * axes["D"] == 0 and bound["count"] is None:
        return
    known = torch.where((ids >= 0) & (ids < segments), ids, segments)
    by_segment, order = known.sort(stable=True)
    starts = torch.searchsorted(by_segment, torch.arange(segments + 1, device=x.device))
    width = min(COLUMNS, triton.next_power_of_2(max(1, axes["D"])))
    states = [bound[n] for n in names]
    strides = [n for s in states for n in ((0, 0) if s is None else s.stride()[:2])]
    count = bound["count"]
    given = {n.upper(): bound[n] is not None for n in (*names, "count")}
    grid = (segments, max(1, axes["H"]), max(1, triton.cdiv(axes["D"], width)))
    with on_device("segment_reduce", x):
        segment_kernel[grid](
            x, order, starts, *(x if s is None else s for s in states),
            order if count is None else count, *x.stride()[:2], *strides,
            0 if count is None else count.stride(0), D=axes["D"], BD=width, **given,
            num_warps=4, **FUSION,
        )  # fmt: skip
