# SPDX-License-Identifier: Apache-2.0
"""`attention_mass` in Triton: sums of the softmax of every row, then what every key gets."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, low_precision, on_device, power_of_two, product

ROWS, KEYS = 32, 64  # queries and keys of a tile, half as many where it stays in registers
LOG2E = 1.4426950408889634


@triton.jit
def _logits(
    q, k, r, j, rows, queries, length, q_head, q_row, k_row, scale,
    D: tl.constexpr, BD: tl.constexpr, CAUSAL: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """[rows, keys] times log2(e), -infinity where nothing is seen. Row r is a head and a query."""
    d = tl.arange(0, BD)
    there = j < length
    at = q + (r // queries)[:, None] * q_head + (r % queries)[:, None] * q_row + d[None, :]
    x = tl.load(at, mask=(r < rows)[:, None] & (d < D)[None, :], other=0.0)
    y = tl.load(
        k + j[None, :] * k_row + d[:, None], mask=there[None, :] & (d < D)[:, None], other=0.0
    )
    s = product(x, y, LOW) * scale
    seen = (r < rows)[:, None] & there[None, :]
    if CAUSAL:
        seen = seen & (j[None, :] <= length - queries + (r % queries)[:, None])
    return tl.where(seen, s, float("-inf"))


@triton.jit(do_not_specialize=["queries", "group", "keys"])
def mass_sums_kernel(
    q, k, lengths, norms, queries, group, keys, heads, q_batch, q_head, q_row, k_batch, k_head,
    k_row, scale, D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """log2 of the sums of the softmax of a tile of rows of one kv head."""
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    rows = queries * group
    q += batch * q_batch + head * group * q_head
    k += batch * k_batch + head * k_head
    length = tl.load(lengths + batch).to(tl.int64)
    top = tl.full([BR], float("-inf"), tl.float32)
    total = tl.zeros([BR], tl.float32)
    for start in range(0, keys, BN):
        j = start + tl.arange(0, BN).to(tl.int64)
        s = _logits(q, k, r, j, rows, queries, length, q_head, q_row, k_row, scale, D, BD, CAUSAL,
                    LOW)  # fmt: skip
        now = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(now > float("-inf"), now, 0.0)
        total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(s - shift[:, None]), 1)
        top = now
    norm = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    tl.store(norms + (batch * heads + head) * rows + r, norm, mask=r < rows)


@triton.jit(do_not_specialize=["queries", "group", "keys"])
def mass_kernel(
    q, k, lengths, norms, mass, queries, group, keys, heads, q_batch, q_head, q_row, k_batch,
    k_head, k_row, scale, D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, LOW: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """What a tile of keys of one kv head gets from all rows."""
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    j = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    rows = queries * group
    q += batch * q_batch + head * group * q_head
    k += batch * k_batch + head * k_head
    length = tl.load(lengths + batch).to(tl.int64)
    got = tl.zeros([BN], tl.float32)
    for start in range(0, rows, BR):
        r = start + tl.arange(0, BR).to(tl.int64)
        norm = tl.load(
            norms + (batch * heads + head) * rows + r, mask=r < rows, other=float("-inf")
        )
        s = _logits(q, k, r, j, rows, queries, length, q_head, q_row, k_row, scale, D, BD, CAUSAL,
                    LOW)  # fmt: skip
        some = norm > float("-inf")
        p = tl.where(some[:, None], tl.exp2(s - tl.where(some, norm, 0.0)[:, None]), 0.0)
        if LARGEST:
            got = tl.maximum(got, tl.max(p, 0))
        else:
            got += tl.sum(p, 0)
    tl.store(mass + (batch * heads + head) * keys + j, got, mask=j < keys)


def attention_mass(bound, axes, outs):
    """`headrace.ops.attention_mass` on CUDA tensors (or, interpreted, small CPU tensors)."""
    q, k, (out,) = bound["q"], bound["k"], outs
    if out.numel() == 0:
        return
    batch, heads, keys, queries = axes["B"], axes["Hkv"], axes["N"], axes["W"]
    group = axes["Hq"] // heads
    lengths = torch.full((batch,), keys, dtype=torch.int32, device=q.device)
    if bound["lengths"] is not None:
        lengths = bound["lengths"].clamp(0, keys)
    low = low_precision(q, k)
    tile_rows, tile_keys = (ROWS, KEYS) if low else (ROWS // 2, KEYS // 2)
    shape = dict(D=axes["D"], BD=power_of_two(axes["D"]), BR=tile_rows, BN=tile_keys)
    options = dict(CAUSAL=bound["causal"], LOW=low, num_warps=4, **FUSION)
    mass = q.new_empty((batch, heads, keys), dtype=torch.float32)
    strides = (*q.stride()[:3], *k.stride()[:3], bound["scale"] * LOG2E)
    with on_device("attention_mass", q):
        if bound["lse"] is None:
            norms = q.new_empty((batch, axes["Hq"], queries), dtype=torch.float32)
            mass_sums_kernel[(triton.cdiv(queries * group, tile_rows), heads, batch)](
                q, k, lengths, norms, queries, group, keys, heads, *strides, **shape, **options
            )
        else:
            norms = (bound["lse"] * LOG2E).contiguous()
        mass_kernel[(triton.cdiv(keys, tile_keys), heads, batch)](
            q, k, lengths, norms, mass, queries, group, keys, heads, *strides,
            LARGEST=bound["reduce"] == "max", **shape, **options,
        )  # fmt: skip
    if bound["reduce"] == "mean":
        mass /= queries * group
    mass = mass[..., : axes["M"]]
    there = torch.arange(axes["M"], device=q.device) < lengths[:, None, None] - bound["exclude"]
    mass = torch.where(there, mass, 0.0)
    if (pool := bound["pool"]) > 1:
        by = torch.nn.functional.avg_pool1d
        by = by if bound["pooling"] == "mean" else torch.nn.functional.max_pool1d
        mass = torch.where(there, by(mass, pool, stride=1, padding=pool // 2), 0.0)
    if bound["past"] is not None:
        mass[..., : bound["past"].shape[2]] += bound["decay"] * bound["past"]
    out.copy_(mass)
