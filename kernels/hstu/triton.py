# SPDX-License-Identifier: Apache-2.0
"""`hstu_attention` in Triton: a block of rows of one sequence and head over what it can see.

Keys in order are read from the first visible tile to the last; a cache with `k_order` is read
whole, key by key masked by its index. Lengths stay on the device. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, low_precision, on_device, power_of_two, product
from headrace.kernels.common.triton_bounds import span

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def _seen(t, h, c, length, reach, full, sinks, CAUSAL: tl.constexpr):
    """Orders [0, near), [lo, hi) that rows of orders t see besides themselves."""
    e = tl.minimum(t, h)
    prefix = t < c
    whole = (reach == 0) | ((full > 0) & (e >= h - full))
    closes = (c > 0) & (e - c + 1 <= reach)
    lo = tl.where(whole | closes | prefix, 0, tl.maximum(e - reach, c))
    hi = tl.where(prefix | (t >= h), h, t + 1)
    if not CAUSAL:
        far = tl.where(prefix, h - c + 1, h - t)
        all_of = (reach == 0) | (far <= reach) | ((full > 0) & (far <= full))
        wide = tl.where(all_of, length, tl.where(prefix, h, t + reach + 1))
        hi = tl.where(t >= h, h, wide)
    return tl.minimum(sinks, lo), lo, hi


@triton.jit
def _tile(
    acc, x, kb, vb, k_row, v_row, j, inside, order, near, lo, hi, t, alpha,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    OWN: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Keys at rows j with the given orders."""
    d = tl.arange(0, BD)
    dv = tl.arange(0, BV)
    o = order[None, :]
    seen = (o < near[:, None]) | ((o >= lo[:, None]) & (o < hi[:, None]))
    if OWN:
        seen = seen | (o == t[:, None])
    seen = seen & inside[None, :]
    used = tl.max(seen.to(tl.int32), 0) > 0
    kt = tl.load(
        kb + j[None, :] * k_row + d[:, None], mask=(d < D)[:, None] & used[None, :], other=0.0
    )
    vt = tl.load(
        vb + j[:, None] * v_row + dv[None, :], mask=used[:, None] & (dv < DV)[None, :], other=0.0
    )
    p = tl.where(seen, _silu(product(x, kt, LOW) * alpha), 0.0)
    return acc + product(p.to(vt.dtype) if LOW else p, vt, LOW)


@triton.jit(
    do_not_specialize=["q_total", "k_total", "sequences", "reach", "context", "full", "sinks"]
)
def hstu_kernel(
    q, k, v, o, q_indptr, k_indptr, num_targets, k_order, attn_scale,
    q_row, q_head, k_row, k_head, v_row, v_head,
    q_total, k_total, sequences, heads, reach, context, full, sinks, alpha, weight,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, CAUSAL: tl.constexpr, SINKS: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    # Which sequence this block of rows falls in.
    seq = -1
    first = 0
    stop = 0
    blocks = 0
    for b in range(sequences):
        begin, size = span(q_indptr, b, q_total)
        here = tl.cdiv(size, BM)
        if (pid >= blocks) & (pid < blocks + here):
            seq = b
            first = begin + (pid - blocks) * BM
            stop = begin + size
        blocks += here
    if seq >= 0:
        k_begin, keys = span(k_indptr, seq, k_total)
        k_begin, keys = k_begin.to(tl.int64), keys.to(tl.int64)
        cols = tl.arange(0, BN)
        length = keys
        if k_order is not None:
            length = keys * 0
            for start in range(0, keys, BN):
                j = start + cols
                some = tl.load(k_order + k_begin + j, mask=j < keys, other=-1)
                length = tl.maximum(length, tl.max(some, 0) + 1)
        h = length
        if num_targets is not None:
            h = tl.minimum(tl.maximum(length - tl.load(num_targets + seq), 0), length)
        c = tl.minimum(context, h)
        row = first + tl.arange(0, BM)
        valid = row < stop
        t = row.to(tl.int64) - stop + length
        near, lo, hi = _seen(t, h, c, length, reach, full, sinks, CAUSAL)
        near = tl.where(valid, near, 0)
        lo = tl.where(valid, lo, 0)
        hi = tl.where(valid, hi, 0)
        t = tl.where(valid, t, -1)

        d = tl.arange(0, BD)
        dv = tl.arange(0, BV)
        at = row.to(tl.int64) * q_row + head * q_head
        x = tl.load(q + at[:, None] + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0)
        kb = k + k_begin * k_row + head * k_head
        vb = v + k_begin * v_row + head * v_head
        acc = tl.zeros([BM, BV], tl.float32)
        if k_order is not None:
            for start in range(0, keys, BN):
                j = (start + cols).to(tl.int64)
                order = tl.load(k_order + k_begin + j, mask=j < keys, other=-1)
                acc = _tile(
                    acc, x, kb, vb, k_row, v_row, j, j < keys, order, near, lo, hi, t, alpha,
                    D, DV, BD, BV, True, LOW,
                )  # fmt: skip
        else:
            lowest = tl.min(tl.where(valid, lo, length), 0)
            highest = tl.minimum(tl.max(hi, 0), keys)
            if SINKS:
                for start in range(0, tl.minimum(tl.max(near, 0), lowest), BN):
                    j = (start + cols).to(tl.int64)
                    acc = _tile(
                        acc, x, kb, vb, k_row, v_row, j, j < lowest, j, near, lo, hi, t, alpha,
                        D, DV, BD, BV, False, LOW,
                    )  # fmt: skip
            for start in range(lowest, highest, BN):
                j = (start + cols).to(tl.int64)
                acc = _tile(
                    acc, x, kb, vb, k_row, v_row, j, j < highest, j, near, lo, hi, t, alpha,
                    D, DV, BD, BV, False, LOW,
                )  # fmt: skip
            # Rows outside of what they see otherwise: targets.
            own = valid & (t >= hi) & (t >= 0)
            if tl.max(own.to(tl.int32), 0) > 0:
                mine = tl.load(
                    kb + t[:, None] * k_row + d[None, :],
                    mask=own[:, None] & (d < D)[None, :],
                    other=0.0,
                )
                y = tl.load(
                    vb + t[:, None] * v_row + dv[None, :],
                    mask=own[:, None] & (dv < DV)[None, :],
                    other=0.0,
                )
                s = tl.sum(x.to(tl.float32) * mine.to(tl.float32), 1) * alpha
                acc += _silu(s)[:, None] * y.to(tl.float32)
        by = weight
        if attn_scale is not None:
            by = tl.load(attn_scale + row, mask=valid, other=0.0)[:, None]
        out = (row.to(tl.int64) * heads + head) * DV
        tl.store(
            o + out[:, None] + dv[None, :],
            (acc * by).to(o.dtype.element_ty),
            mask=valid[:, None] & (dv < DV)[None, :],
        )


def hstu_attention(bound, axes, outs):
    """`headrace.ops.hstu_attention` on CUDA tensors (or, interpreted, small CPU tensors)."""
    q, k, v, (o,) = bound["q"], bound["k"], bound["v"], outs
    if o.numel() == 0 or axes["B"] == 0:
        return
    low = low_precision(q)
    dims = power_of_two(axes["D"]), power_of_two(axes["Dv"])
    block_m, block_n = (32 if low else 16), 32
    # Without tensor cores whole tiles are kept: spilled, unless all registers may be taken.
    # No sequence leaves more than one block that is not full.
    blocks = triton.cdiv(axes["Lq"], block_m) + axes["B"]
    with on_device("hstu_attention", q):
        hstu_kernel[(blocks, axes["H"])](
            q, k, v, o,
            bound["k_indptr"] if bound["q_indptr"] is None else bound["q_indptr"],
            bound["k_indptr"], bound["num_targets"], bound["k_order"], bound["attn_scale"],
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            axes["Lq"], axes["Lk"], axes["B"], axes["H"], bound["max_attn_len"],
            bound["contextual_seq_len"], bound["min_full_attn_seq_len"], bound["sinks"],
            float(bound["alpha"]), 1.0 / bound["max_seq_len"],
            D=axes["D"], DV=axes["Dv"], BD=dims[0], BV=dims[1], BM=block_m, BN=block_n,
            CAUSAL=bound["causal"], SINKS=bound["sinks"] > 0, LOW=low,
            num_warps=8, num_stages=1, maxnreg=None if low else 255, **FUSION,
        )  # fmt: skip
