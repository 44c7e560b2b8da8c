# SPDX-License-Identifier: Apache-2.0
"""`similarity` in Triton: a few rows to a program; of patches some image rows, added up in torch.

Not yet seen running on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device

from .spec import METRICS

TILE = 2048  # elements that a program holds at a time
CHUNK = 1 << 15  # elements of a patch that one program adds up
COS, DOT, L1, GAUSS = (tl.constexpr(METRICS.index(m)) for m in ("cos", "dot", "l1", "gauss"))


@triton.jit
def _add(x, r, a, b, c, METRIC: tl.constexpr):
    """The running sums that a metric is made of, elementwise."""
    if METRIC == COS:
        a += x * r
        b += x * x
        c += r * r
    elif METRIC == DOT:
        a += x * r
    elif METRIC == L1:
        a += tl.abs(x - r)
    else:
        a += (x - r) * (x - r)
    return a, b, c


@triton.jit
def _row_scores(
    x, ref, there, alpha, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    METRIC: tl.constexpr,
):  # fmt: skip
    """fp32 [BM] of rows of pointers x and ref [BM]."""
    a = tl.zeros([BM, BD], tl.float32)
    b = tl.zeros([BM, BD], tl.float32)
    c = tl.zeros([BM, BD], tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        mask = there[:, None] & (d < D)[None, :]
        u = tl.load(x[:, None] + d[None, :], mask=mask, other=0).to(tl.float32)
        v = tl.load(ref[:, None] + d[None, :], mask=mask, other=0).to(tl.float32)
        a, b, c = _add(u, v, a, b, c, METRIC)
    s = tl.sum(a, 1)
    if METRIC == COS:
        norms = tl.sqrt(tl.sum(b, 1)) * tl.sqrt(tl.sum(c, 1))
        s = tl.where(norms == 0, 0.0, s / norms)
    elif METRIC == L1:
        s = s / max(D, 1)
    elif METRIC == GAUSS:
        s = tl.exp(-s / (2 * alpha))
    return s


@triton.jit(do_not_specialize=["rows", "height", "width", "ref_rows", "alpha"])
def rows_kernel(
    x, ref, index, out, rows, height, width, ref_rows, alpha, x_frame, x_high, x_wide,
    ref_frame, ref_high, ref_wide, index_frame, index_high, index_wide,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, METRIC: tl.constexpr,
    DISTANCE: tl.constexpr, INDEXED: tl.constexpr, RADIUS: tl.constexpr,
):  # fmt: skip
    """Scores of BM rows of the flattened grid."""
    t = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM).to(tl.int64)
    there = t < rows
    w, h, f = t % width, t // width % height, t // width // height
    mine = x + f * x_frame + h * x_high + w * x_wide
    worst = float("inf") if DISTANCE else float("-inf")
    if INDEXED:
        at = f * index_frame + h * index_high + w * index_wide
        s = tl.load(index + at, mask=there, other=-1).to(tl.int64)
        known = (s >= 0) & (s < ref_rows)
        best = _row_scores(mine, ref + s * ref_wide, known, alpha, D, BM, BD, METRIC)
        best = tl.where(known, best, worst)
    else:
        best = tl.full([BM], worst, tl.float32)
        for i in range(0, (2 * RADIUS + 1) * (2 * RADIUS + 1)):
            y, z = h + i // (2 * RADIUS + 1) - RADIUS, w + i % (2 * RADIUS + 1) - RADIUS
            inside = there & (y >= 0) & (y < height) & (z >= 0) & (z < width)
            other = ref + f * ref_frame + y * ref_high + z * ref_wide
            s = _row_scores(mine, other, inside, alpha, D, BM, BD, METRIC)
            if DISTANCE:
                better = s < best
            else:
                better = s > best
            best = tl.where(inside & (better | (s != s)), s, best)
    tl.store(out + t, best, mask=there)


@triton.jit(do_not_specialize=["height", "width", "high", "wide", "step", "chunks", "bands"])
def patches_kernel(
    x, ref, sums, height, width, high, wide, step, chunks, bands, x_frame, x_high, x_wide,
    ref_frame, ref_high, ref_wide, D: tl.constexpr, B: tl.constexpr, METRIC: tl.constexpr,
):  # fmt: skip
    """Sums [band, chunk, patch, 3] over the image rows of a chunk of a patch."""
    band = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1).to(tl.int64)
    column = tl.program_id(2).to(tl.int64)
    frame, top = band // bands, band % bands * high
    first = top + chunk * step
    last = tl.minimum(tl.minimum(first + step, top + high), height)
    left = column * wide
    n = tl.minimum(wide, width - left) * D
    a = tl.zeros([B], tl.float32)
    b = tl.zeros([B], tl.float32)
    c = tl.zeros([B], tl.float32)
    for y in range(first, last):
        mine = x + frame * x_frame + y * x_high + left * x_wide
        other = ref + frame * ref_frame + y * ref_high + left * ref_wide
        for start in range(0, n, B):
            e = start + tl.arange(0, B).to(tl.int64)
            u = tl.load(mine + e // D * x_wide + e % D, mask=e < n, other=0).to(tl.float32)
            v = tl.load(other + e // D * ref_wide + e % D, mask=e < n, other=0).to(tl.float32)
            a, b, c = _add(u, v, a, b, c, METRIC)
    out = sums + ((band * chunks + chunk) * tl.num_programs(2) + column) * 3
    tl.store(out, tl.sum(a, 0))
    tl.store(out + 1, tl.sum(b, 0))
    tl.store(out + 2, tl.sum(c, 0))


def _strides(x):
    return [0 if x.shape[i] == 1 else x.stride(i) for i in range(3)]


def _finish(sums, metric, axes, high, wide, alpha):
    """Scores [F, Ho, Wo] from sums [F * Ho, chunks, Wo, 3]."""
    s = sums.double().sum(1).view(axes["F"], axes["Ho"], axes["Wo"], 3)
    if metric == "cos":
        norms = s[..., 1].sqrt() * s[..., 2].sqrt()
        return torch.where(norms == 0, 0.0, s[..., 0] / norms)
    if metric == "l1":
        edge = lambda n, size, whole: (  # noqa: E731
            whole - torch.arange(n, device=s.device) * size
        ).clamp(max=size)
        rows, columns = edge(axes["Ho"], high, axes["H"]), edge(axes["Wo"], wide, axes["W"])
        return s[..., 0] / (rows[:, None] * columns * axes["D"]).clamp(min=1)
    return (-s[..., 0] / (2 * alpha)).exp() if metric == "gauss" else s[..., 0]


def similarity(bound, axes, outs):
    """`headrace.ops.similarity` on CUDA tensors (or, interpreted, small CPU tensors)."""
    x, ref, index, (out,) = bound["x"], bound["ref"], bound["index"], outs
    if out.numel() == 0:
        return
    metric, width = bound["metric"], max(axes["D"], 1)
    high = max(1, min(bound["patch_height"] or axes["H"], axes["H"]))
    wide = max(1, min(bound["patch_width"] or axes["W"], axes["W"]))
    options = {"D": axes["D"], "METRIC": METRICS.index(metric), "num_warps": 4, **FUSION}
    with on_device("similarity", x):
        if (high, wide) == (1, 1):
            columns = min(512, max(16, triton.next_power_of_2(width)))
            tile, rows = max(1, TILE // columns), out.numel()
            radius = min(bound["radius"], max(axes["H"], axes["W"]))
            rows_kernel[(triton.cdiv(rows, tile),)](
                x, ref, x if index is None else index, out, rows, axes["H"], axes["W"],
                ref.shape[2], bound["alpha"], *x.stride()[:3],
                *(_strides(ref) if index is None else ref.stride()[:3]),
                *((0, 0, 0) if index is None else _strides(index)),
                BM=tile, BD=columns, DISTANCE=metric in ("l1", "l2"),
                INDEXED=index is not None, RADIUS=radius, **options,
            )  # fmt: skip
            return
        step = max(1, min(high, CHUNK // (wide * width)))
        chunks = triton.cdiv(high, step)
        bands = axes["F"] * axes["Ho"]
        sums = x.new_empty((bands, chunks, axes["Wo"], 3), dtype=torch.float32)
        block = max(16, min(1024, triton.next_power_of_2(wide * width)))
        if axes["D"] == 0:
            sums.zero_()
        else:
            patches_kernel[(bands, chunks, axes["Wo"])](
                x, ref, sums, axes["H"], axes["W"], high, wide, step, chunks, axes["Ho"],
                *x.stride()[:3], *_strides(ref), B=block, **options,
            )  # fmt: skip
        out.copy_(_finish(sums, metric, axes, high, wide, bound["alpha"]))
