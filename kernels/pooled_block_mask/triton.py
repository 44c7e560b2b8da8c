# SPDX-License-Identifier: Apache-2.0
"""`pooled_block_mask` in Triton: means of blocks, their centre, scores, and the best of each row.

Not yet seen running on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device, power_of_two, product

TILE = 32  # rows, blocks, that a program takes at a time
ROW = 1024  # scores of a row that it takes at a time


@triton.jit(do_not_specialize=["heads", "length", "size", "blocks"])
def pool_kernel(
    x, means, batch, head, row, heads, length, size, blocks,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The mean of one block."""
    pid = tl.program_id(0)
    which = pid // blocks
    first = (pid % blocks).to(tl.int64) * size
    last = tl.minimum(first + size, length)
    d = tl.arange(0, BD)
    x += (which // heads).to(tl.int64) * batch + (which % heads).to(tl.int64) * head
    total = tl.zeros([BD], tl.float32)
    for start in range(first, last, BN):
        t = start + tl.arange(0, BN)
        mask = (t < last)[:, None] & (d < D)[None, :]
        part = tl.load(x + t[:, None] * row + d[None, :], mask=mask, other=0.0)
        total += tl.sum(part.to(tl.float32), 0)
    tl.store(means + pid.to(tl.int64) * D + d, total / (last - first), mask=d < D)


@triton.jit(do_not_specialize=["blocks"])
def centre_kernel(means, centre, blocks, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr):
    """The mean of the finite block means of one head."""
    pid = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    total = tl.zeros([BD], tl.float32)
    count = tl.zeros([BD], tl.float32)
    for start in range(0, blocks, BN):
        j = start + tl.arange(0, BN)
        mask = (j < blocks)[:, None] & (d < D)[None, :]
        at = (pid * blocks + j)[:, None] * D + d[None, :]
        x = tl.load(means + at, mask=mask, other=float("inf"))
        finite = tl.abs(x) < float("inf")
        total += tl.sum(tl.where(finite, x, 0.0), 0)
        count += tl.sum(finite.to(tl.float32), 0)
    tl.store(centre + pid * D + d, total / tl.maximum(count, 1.0), mask=d < D)


@triton.jit(do_not_specialize=["q_blocks", "k_blocks"])
def score_kernel(
    q, k, centre, scores, group, q_blocks, k_blocks,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile of scores of one query head."""
    head = tl.program_id(2).to(tl.int64)
    i = tl.program_id(1) * BN + tl.arange(0, BN)
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    d = tl.arange(0, BD)
    at = (head * q_blocks + i)[:, None] * D + d[None, :]
    x = tl.load(q + at, mask=(i < q_blocks)[:, None] & (d < D)[None, :], other=0.0)
    middle = tl.load(centre + head // group * D + d, mask=d < D, other=0.0)
    at = (head // group * k_blocks + j)[None, :] * D + d[:, None]
    inside = (d < D)[:, None] & (j < k_blocks)[None, :]
    y = tl.load(k + at, mask=inside, other=0.0) - middle[:, None]
    s = product(x, tl.where(inside, y, 0.0), False)
    to = (head * q_blocks + i)[:, None] * k_blocks + j[None, :]
    tl.store(scores + to, s, mask=(i < q_blocks)[:, None] & (j < k_blocks)[None, :])


@triton.jit
def _keys(
    scores, start, k_blocks, seen_lo, seen_hi, close_lo, close_hi, pinned, BN: tl.constexpr
):  # fmt: skip
    """int64 [BN] that order as the scores do: 0 for no candidate, 2**32 for what is always kept."""
    j = start + tl.arange(0, BN)
    x = tl.load(scores + j, mask=j < k_blocks, other=0.0)
    x = tl.where(x == x, x + 0.0, float("-inf"))
    bits = x.to(tl.int32, bitcast=True).to(tl.int64)
    key = tl.where(bits < 0, -bits - 1, bits + (1 << 31))  # below zero the order turns
    seen = (j >= seen_lo) & (j < seen_hi)
    forced = (j < pinned) | (seen & (j >= close_lo) & (j < close_hi))
    key = tl.where(forced, 1 << 32, tl.where(seen, key, 0))
    return tl.where(j < k_blocks, key, -1)


@triton.jit(do_not_specialize=["q_blocks", "k_blocks"])
def choose_kernel(scores, rows, mask, q_blocks, k_blocks, BN: tl.constexpr):
    """The mask of one query block: bisects for the key of the last block that it keeps."""
    pid = tl.program_id(0).to(tl.int64)
    scores += pid * k_blocks
    mask += pid * k_blocks
    plan = rows + pid % q_blocks * 6
    seen_lo, seen_hi = tl.load(plan), tl.load(plan + 1)
    close_lo, close_hi = tl.load(plan + 2), tl.load(plan + 3)
    pinned, wanted = tl.load(plan + 4), tl.load(plan + 5)
    bound = pinned * 0
    bit = pinned * 0 + (1 << 32)
    for _ in range(33):
        more = bound + bit
        count = pinned * 0
        for start in range(0, k_blocks, BN):
            keys = _keys(scores, start, k_blocks, seen_lo, seen_hi, close_lo, close_hi, pinned, BN)
            count += tl.sum((keys >= more).to(tl.int64), 0)
        bound = tl.where(count >= wanted, more, bound)
        bit = bit // 2
    above = pinned * 0
    for start in range(0, k_blocks, BN):
        keys = _keys(scores, start, k_blocks, seen_lo, seen_hi, close_lo, close_hi, pinned, BN)
        above += tl.sum((keys > bound).to(tl.int64), 0)
    ties = wanted - above
    for start in range(0, k_blocks, BN):
        keys = _keys(scores, start, k_blocks, seen_lo, seen_hi, close_lo, close_hi, pinned, BN)
        same = (keys == bound).to(tl.int64)
        kept = (keys > bound) | ((same > 0) & (tl.cumsum(same, 0) <= ties))
        j = start + tl.arange(0, BN)
        tl.store(mask + j, (kept & (wanted > 0)).to(tl.uint8), mask=j < k_blocks)
        ties -= tl.sum(same, 0)


def _near(oldest, newest, reach, causal, size, k_len):
    """Blocks [lo, hi) with a key within `reach` of queries oldest..newest."""
    lo = (oldest - reach + 1).clamp(0, k_len) // size
    top = (newest if causal else newest + reach - 1).clamp(-1, k_len - 1)
    hi = (top + size) // size if reach else torch.zeros_like(top)
    return lo, hi.maximum(lo)


def plan_rows(axes, bound, device):
    """int64 [query blocks, 6]: candidates [lo, hi), local [lo, hi), pinned blocks, how many."""
    q_len, k_len, size, causal = axes["Lq"], axes["Lk"], bound["block_size"], bound["causal"]
    unlimited = q_len + k_len
    first = torch.arange(0, q_len, size, device=device) + k_len - q_len
    newest = (first + size).clamp(max=k_len) - 1
    reach = unlimited if bound["window"] is None else min(bound["window"], unlimited)
    lo, hi = _near(first, newest, reach, causal, size, k_len)
    near_lo, near_hi = _near(first, newest, min(bound["local"], unlimited), causal, size, k_len)
    near_lo, near_hi = near_lo.maximum(lo), near_hi.minimum(hi)
    pinned = (newest + 1 if causal else torch.full_like(newest, k_len)).clamp(0, k_len)
    pinned = (pinned.clamp(max=bound["sinks"]) + size - 1) // size
    candidates = pinned + (hi - lo.maximum(pinned)).clamp(min=0)
    forced = pinned + (near_hi - near_lo.maximum(pinned)).clamp(min=0)
    wanted = (bound["share"] * candidates.double() + 0.5).long().clamp(min=1)
    if bound["blocks"] is not None:
        wanted = torch.full_like(candidates, bound["blocks"])
    wanted = wanted.maximum(forced).minimum(candidates)
    return torch.stack([lo, hi, near_lo, near_hi, pinned, wanted], 1)


def pooled_block_mask(bound, axes, outs):
    """`headrace.ops.pooled_block_mask` on CUDA tensors (or, interpreted, small CPU tensors)."""
    q, k, (mask,) = bound["q"], bound["k"], outs
    if mask.numel() == 0:
        return
    dim, (batch, q_heads, q_blocks, k_blocks) = axes["D"], mask.shape
    kv_heads, padded = axes["Hkv"], power_of_two(axes["D"])
    size = min(bound["block_size"], axes["Lq"] + axes["Lk"])
    made = dict(dtype=torch.float32)
    q_means = q.new_empty((batch * q_heads * q_blocks, dim), **made)
    k_means = k.new_empty((batch * kv_heads * k_blocks, dim), **made)
    centre = k.new_empty((batch * kv_heads, dim), **made)
    scores = q.new_empty(mask.shape, **made)
    rows = plan_rows(axes, {**bound, "block_size": size}, q.device)
    options = dict(num_warps=8, **FUSION)
    shape = dict(D=dim, BD=padded, BN=TILE)
    with on_device("pooled_block_mask", q):
        for x, means, heads, blocks in (
            (q, q_means, q_heads, q_blocks),
            (k, k_means, kv_heads, k_blocks),
        ):
            pool_kernel[(batch * heads * blocks,)](
                x, means, *x.stride()[:3], heads, x.shape[2], size, blocks, **shape, **options
            )
        centre_kernel[(batch * kv_heads,)](k_means, centre, k_blocks, **shape, **options)
        tiles = (triton.cdiv(k_blocks, TILE), triton.cdiv(q_blocks, TILE), batch * q_heads)
        score_kernel[tiles](
            q_means, k_means, centre, scores, q_heads // kv_heads, q_blocks, k_blocks,
            **shape, **options,
        )  # fmt: skip
        choose_kernel[(batch * q_heads * q_blocks,)](
            scores, rows, mask.view(torch.uint8), q_blocks, k_blocks,
            BN=min(ROW, power_of_two(k_blocks)), **options,
        )  # fmt: skip
