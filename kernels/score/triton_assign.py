# SPDX-License-Identifier: Apache-2.0
"""`assign` in Triton: a program compares a tile of rows with tile after tile of candidates."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, low_precision, on_device, power_of_two, product

ROWS, CANDIDATES, COLUMNS = 32, 32, 64  # of a tile
_METRICS = ("cos", "dot", "l2", "hamming")


@triton.jit
def _ones(x):
    """Bits that are set in 32-bit words."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24) & 0xFF


@triton.jit(do_not_specialize=["rows", "candidates", "id_step", "id_first"])
def assign_kernel(
    x, c, lengths, id, similarity, rows, candidates, x_batch, x_row, c_batch, c_row, id_step,
    id_first, threshold, D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
    METRIC: tl.constexpr, CAUSAL: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """A tile of rows; the lowest of equally similar candidates stays."""
    batch = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    x += batch * x_batch
    c += batch * c_batch
    length = tl.minimum(tl.load(lengths + batch).to(tl.int64), candidates)
    best = tl.full([BR], float("-inf"), tl.float32)
    which = tl.full([BR], -1, tl.int64)
    for start in range(0, candidates, BN):
        j = start + tl.arange(0, BN).to(tl.int64)
        s = tl.zeros([BR, BN], tl.float32)
        if METRIC == 3:
            for word in range(0, D):
                a = tl.load(x + i * x_row + word, mask=i < rows, other=0)
                b = tl.load(c + j * c_row + word, mask=j < length, other=0)
                apart = (
                    a.to(tl.uint32, bitcast=True)[:, None] ^ b.to(tl.uint32, bitcast=True)[None, :]
                )
                s -= _ones(apart).to(tl.float32)
        else:
            x_square = tl.zeros([BR], tl.float32)
            c_square = tl.zeros([BN], tl.float32)
            for first in range(0, D, BD):
                d = first + tl.arange(0, BD)
                a = tl.load(x + i[:, None] * x_row + d[None, :],
                            mask=(i < rows)[:, None] & (d < D)[None, :], other=0.0)  # fmt: skip
                b = tl.load(c + j[None, :] * c_row + d[:, None],
                            mask=(j < length)[None, :] & (d < D)[:, None], other=0.0)  # fmt: skip
                if METRIC == 2:
                    apart = a.to(tl.float32)[:, :, None] - b.to(tl.float32)[None, :, :]
                    s -= tl.sum(apart * apart, 1)
                else:
                    s += product(a, b, LOW)
                x_square += tl.sum(a.to(tl.float32) * a.to(tl.float32), 1)
                c_square += tl.sum(b.to(tl.float32) * b.to(tl.float32), 0)
            if METRIC == 0:
                x_by = tl.where(
                    x_square > 0, 1 / tl.sqrt(tl.where(x_square > 0, x_square, 1.0)), 0.0
                )
                c_by = tl.where(
                    c_square > 0, 1 / tl.sqrt(tl.where(c_square > 0, c_square, 1.0)), 0.0
                )
                s = s * x_by[:, None] * c_by[None, :]
        seen = (j < length)[None, :] & (s == s)
        if CAUSAL:
            seen = seen & (j[None, :] < i[:, None])
        s = tl.where(seen, s, float("-inf"))
        top = tl.max(s, 1)
        first = tl.min(tl.where(s == top[:, None], j[None, :], candidates), 1)
        more = top > best
        which = tl.where(more, first, which)
        best = tl.where(more, top, best)
    enough = (which >= 0) & (best >= threshold)
    at = batch * rows + i
    tl.store(id + at, tl.where(enough, which * id_step + id_first, -1).to(tl.int32), mask=i < rows)
    tl.store(similarity + at, best, mask=i < rows)


def assign(bound, axes, outs):
    """`headrace.ops.assign` on CUDA tensors (or, interpreted, small CPU tensors)."""
    x, c, (id, similarity) = bound["x"], bound["c"], outs
    if id.numel() == 0:
        return
    metric, step = _METRICS.index(bound["metric"]), 2 if bound["bipartite"] else 1
    if c is None:
        c = x[:, 1::2] if bound["bipartite"] else x
    lengths = bound["lengths"]
    if lengths is None:
        lengths = torch.full((axes["B"],), axes["C"], dtype=torch.int32, device=x.device)
    tile = 16 if metric == 2 else ROWS
    columns = 16 if metric == 2 else min(COLUMNS, power_of_two(axes["D"]))
    low = metric != 3 and low_precision(x, c)
    wide = metric < 2 and not low  # whole tiles in registers, which the assembler would spill
    threshold = float("-inf") if bound["threshold"] is None else bound["threshold"]
    with on_device("assign", x):
        assign_kernel[(triton.cdiv(axes["O"], tile), axes["B"])](
            x, c, lengths, id, similarity, axes["O"], axes["C"], x.stride(0), step * x.stride(1),
            0 if c.shape[0] == 1 else c.stride(0), c.stride(1), step, step - 1, threshold,
            D=axes["D"], BD=columns, BR=tile, BN=16 if metric == 2 else CANDIDATES,
            METRIC=metric, CAUSAL=bound["causal"], LOW=low,
            num_warps=4, maxnreg=160 if wide else None, **FUSION,
        )  # fmt: skip
