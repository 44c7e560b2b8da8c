# SPDX-License-Identifier: Apache-2.0
"""`select` in Triton: one program a row finds the key of the last element that is kept.

The policies that look beyond a row (flat), at buckets (quota) or at a histogram (otsu), and forced
ranges, are planned with sorts of torch. Nothing waits for the device. Not yet seen running on a
GPU.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device, power_of_two

ROW = 4096  # scores that a program takes at a time
FORCED = 1 << 32
_POLICY = {"threshold": 1, "share": 2, "mass": 3}


@triton.jit
def _values(score, j, inside, LOWEST: tl.constexpr):
    x = tl.load(score + j, mask=inside, other=float("-inf")).to(tl.float32)
    if LOWEST:
        x = -x
    x = tl.where(inside, x, float("-inf"))
    return tl.where(x == x, x + 0.0, float("-inf"))


@triton.jit
def _keys(
    score, keys, j, length, first, last, LOWEST: tl.constexpr, KEYED: tl.constexpr
):  # fmt: skip
    """int64 that order as elements do: 0 for what is never kept, 2**32 for what always is."""
    inside = j < length
    if KEYED:
        return tl.load(keys + j, mask=inside, other=0)
    x = _values(score, j, inside, LOWEST)
    bits = x.to(tl.int32, bitcast=True).to(tl.int64)
    key = tl.where(bits < 0, -bits - 1, bits + (1 << 31))
    key = tl.where(x > float("-inf"), key, 0)
    return tl.where(inside & ((j < first) | (j >= length - last)), 1 << 32, key)


@triton.jit
def _weights(score, counts, j, length, top, LOWEST: tl.constexpr, COUNTED: tl.constexpr):
    """fp64 count * exp(score - top)."""
    x = _values(score, j, j < length, LOWEST)
    w = tl.where(x == top, 1.0, tl.exp(x - top))
    w = tl.where(x > float("-inf"), w, 0.0)
    if COUNTED:
        w = w * tl.load(counts + j, mask=j < length, other=0.0)
    return w.to(tl.float64)


@triton.jit
def _fp64(length, bits):
    """Of the bits of one; length: any integer that was loaded."""
    return (length * 0 + bits).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["size", "capacity", "floor", "first", "last", "heads", "share",
                               "mass"])  # fmt: skip
def select_kernel(
    score, keys, counts, lengths, limits, given, threshold, share, mass, index, count, heads, size,
    capacity, floor, first, last, score_batch, score_head, counts_batch, counts_head,
    POLICY: tl.constexpr, LOWEST: tl.constexpr, KEYED: tl.constexpr, COUNTED: tl.constexpr,
    GIVEN: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One row. share and mass are the bits of fp64, which no argument can be."""
    pid = tl.program_id(0).to(tl.int64)
    score += pid // heads * score_batch + pid % heads * score_head
    keys += pid * size
    if COUNTED:
        counts += pid // heads * counts_batch + pid % heads * counts_head
    length = tl.load(lengths + pid).to(tl.int64)
    threshold = (length * 0).to(tl.float32) + threshold
    forced, valid = length * 0, length * 0
    reached = length * 0
    top = threshold * 0 + float("-inf")
    for start in range(0, size, BN):
        j = start + tl.arange(0, BN).to(tl.int64)
        key = _keys(score, keys, j, length, first, last, LOWEST, KEYED)
        must = key == (1 << 32)
        forced += tl.sum(must.to(tl.int64), 0)
        valid += tl.sum((key > 0).to(tl.int64), 0)
        if POLICY == 1:
            x = _values(score, j, j < length, LOWEST)
            reached += tl.sum((must | ((key > 0) & (x >= threshold))).to(tl.int64), 0)
        if POLICY == 3:
            top = tl.maximum(top, tl.max(_values(score, j, j < length, LOWEST), 0))
    wanted = valid
    if POLICY == 1:
        wanted = reached
    if POLICY == 2:
        wanted = (_fp64(length, share) * valid.to(tl.float64) + 0.5).to(tl.int64)
    if POLICY == 3:
        total = (length * 0).to(tl.float64)
        for start in range(0, size, BN):
            j = start + tl.arange(0, BN).to(tl.int64)
            total += tl.sum(_weights(score, counts, j, length, top, LOWEST, COUNTED), 0)
        target = total * _fp64(length, mass)
        bound = length * 0
        bit = length * 0 + (1 << 32)
        for _ in range(33):
            more = bound + bit
            held = total * 0
            for start in range(0, size, BN):
                j = start + tl.arange(0, BN).to(tl.int64)
                key = _keys(score, keys, j, length, first, last, LOWEST, KEYED)
                w = _weights(score, counts, j, length, top, LOWEST, COUNTED)
                held += tl.sum(tl.where(key >= more, w, 0.0), 0)
            bound = tl.where(held >= target, more, bound)
            bit = bit // 2
        held = total * 0
        for start in range(0, size, BN):
            j = start + tl.arange(0, BN).to(tl.int64)
            key = _keys(score, keys, j, length, first, last, LOWEST, KEYED)
            w = _weights(score, counts, j, length, top, LOWEST, COUNTED)
            held += tl.sum(tl.where(key > bound, w, 0.0), 0)
        wanted = length * 0
        for start in range(0, size, BN):
            j = start + tl.arange(0, BN).to(tl.int64)
            key = _keys(score, keys, j, length, first, last, LOWEST, KEYED)
            w = _weights(score, counts, j, length, top, LOWEST, COUNTED)
            same = tl.where(key == bound, w, 0.0)
            before = held + tl.cumsum(same, 0) - same
            fits = (key > bound) | ((key == bound) & (before < target))
            wanted += tl.sum((fits & (key > 0)).to(tl.int64), 0)
            held += tl.sum(same, 0)
        wanted = tl.where(total > 0, wanted, 0)
    if GIVEN:
        wanted = tl.load(given + pid).to(tl.int64)
    wanted = tl.minimum(tl.maximum(wanted, floor), tl.load(limits + pid).to(tl.int64))
    wanted = tl.minimum(tl.minimum(tl.maximum(wanted, forced), valid), capacity)

    bound = length * 0
    bit = length * 0 + (1 << 32)
    for _ in range(33):
        more = bound + bit
        n = length * 0
        for start in range(0, size, BN):
            j = start + tl.arange(0, BN).to(tl.int64)
            key = _keys(score, keys, j, length, first, last, LOWEST, KEYED)
            n += tl.sum((key >= more).to(tl.int64), 0)
        bound = tl.where(n >= wanted, more, bound)
        bit = bit // 2
    above = length * 0
    for start in range(0, size, BN):
        j = start + tl.arange(0, BN).to(tl.int64)
        key = _keys(score, keys, j, length, first, last, LOWEST, KEYED)
        above += tl.sum((key > bound).to(tl.int64), 0)
    ties = wanted - above
    at = length * 0
    for start in range(0, size, BN):
        j = start + tl.arange(0, BN).to(tl.int64)
        key = _keys(score, keys, j, length, first, last, LOWEST, KEYED)
        same = (key == bound).to(tl.int64)
        kept = ((key > bound) | ((same > 0) & (tl.cumsum(same, 0) <= ties))) & (wanted > 0)
        one = kept.to(tl.int64)
        place = at + tl.cumsum(one, 0) - 1
        tl.store(index + pid * capacity + place, j.to(tl.int32), mask=one > 0)
        ties -= tl.sum(same, 0)
        at += tl.sum(one, 0)
    for start in range(0, capacity, BN):
        j = start + tl.arange(0, BN).to(tl.int64)
        tl.store(index + pid * capacity + j, -1, mask=(j >= at) & (j < capacity))
    tl.store(count + pid, at.to(tl.int32))


def sort_keys(bound, axes, lengths):
    """The keys of all rows, int64 [B, H, N], and the scores in fp32."""
    x = bound["score"].float()
    x = (-x if bound["lowest"] else x) + 0.0
    bits = x.view(torch.int32).long()
    j = torch.arange(axes["N"], device=x.device)
    length = lengths[..., None]
    must = (j < bound["first"]) | (j >= length - bound["last"])
    if (ranges := bound["forced"]) is not None:
        for begin, end in (r.unbind(-1) for r in ranges.unbind(2)):
            must = must | ((j >= begin[..., None]) & (j < end[..., None]))
    key = torch.where(bits < 0, -bits - 1, bits + 2**31)
    key = torch.where(x > -torch.inf, key, 0)
    return torch.where(j < length, torch.where(must, FORCED, key), 0), x


def places(keys):
    """Place of every element along the last axis, best first."""
    n = keys.shape[-1]
    j = torch.arange(n, device=keys.device)
    order = (keys * n + (n - 1 - j)).argsort(dim=-1, descending=True)
    return torch.empty_like(order).scatter_(-1, order, j.expand(order.shape))


def within_quota(keys, bound):
    """The keys of what its bucket has room for, or is among the best `floor`; else 0."""
    n = keys.shape[-1]
    buckets = bound["buckets"].long().expand(keys.shape)
    known = (buckets >= 0) & (buckets < n)
    keys = torch.where(known | (keys == FORCED), keys, 0)
    place = places(keys)
    order = (torch.where(known, buckets, n) * n + place).argsort(dim=-1)
    sorted_buckets = torch.where(known, buckets, n).gather(-1, order)
    j = torch.arange(n, device=keys.device).expand(keys.shape)
    fresh = torch.ones_like(sorted_buckets, dtype=torch.bool)
    fresh[..., 1:] = sorted_buckets[..., 1:] != sorted_buckets[..., :-1]
    start = torch.where(fresh, j, 0).cummax(-1).values
    rank = torch.empty_like(order).scatter_(-1, order, j - start)
    fits = (keys == FORCED) | (rank < bound["quota"]) | (place < bound["floor"])
    return torch.where(fits, keys, 0)


def otsu_counts(keys, x):
    """How many lie above the cut of the largest variance between classes, forced ones too."""
    valid = (keys > 0) & (x > -torch.inf)
    finite = valid & (x < torch.inf)
    low = torch.where(finite, x, torch.inf).amin(-1, True)
    scale = 256.0 / (torch.where(finite, x, -torch.inf).amax(-1, True) - low)
    bins = torch.where(x < torch.inf, (x - low) * scale, 255.0)
    bins = torch.where(valid, bins, 0.0).nan_to_num(0, 255, 0).clamp(0, 255).long()
    n = torch.zeros(*x.shape[:-1], 256, dtype=torch.float64, device=x.device)
    n.scatter_add_(-1, bins, valid.double())
    value = n * torch.arange(256, dtype=torch.float64, device=x.device)
    below, sums = n.cumsum(-1), value.cumsum(-1)
    rest = below[..., -1:] - below
    apart = (sums[..., -1:] - sums) / rest - sums / below
    split = torch.where((below > 0) & (rest > 0), below * rest * apart * apart, 0.0)
    cut = torch.where((scale > 0) & (scale < torch.inf), split.argmax(-1, True), -1)
    return ((keys == FORCED) | (valid & (bins > cut))).sum(-1)


def flat_counts(keys, total, floor):
    """How many of every head are among the best of all heads together."""
    batch, heads, n = keys.shape
    valid, forced = (keys > 0).sum(-1), (keys == FORCED).sum(-1)
    base = valid.clamp(max=floor).maximum(forced)
    raised = torch.where(places(keys) < base[..., None], FORCED, keys)
    total = total[:, 0].maximum(base.sum(-1))
    kept = (places(raised.view(batch, heads * n)) < total[:, None]).view(batch, heads, n)
    return (kept & (keys > 0)).sum(-1)


def select(bound, axes, outs):
    """`headrace.ops.select` on CUDA tensors (or, interpreted, small CPU tensors)."""
    score, (index, count) = bound["score"], outs
    rows, size, policy = axes["B"] * axes["H"], axes["N"], bound["policy"]
    if rows == 0:
        return
    if size == 0:
        index.fill_(-1)
        count.zero_()
        return
    whole = torch.full((axes["B"], axes["H"]), size, dtype=torch.int32, device=score.device)
    lengths = whole if bound["lengths"] is None else bound["lengths"].clamp(0, size) + 0 * whole
    limits = whole if bound["k"] is None else (0 * whole + min(bound["k"], 2**31 - 1))
    if bound["budget"] is not None:
        limits = bound["budget"].clamp(min=0) + 0 * whole
    floor = 0 if policy in ("quota", "flat") else min(bound["floor"], size)
    keys = given = None
    if policy in ("quota", "otsu", "flat") or bound["forced"] is not None:
        keys, x = sort_keys(bound, axes, lengths)
        if policy == "quota":
            keys = within_quota(keys, bound)
        elif policy == "otsu":
            given = otsu_counts(keys, x).int()
        elif policy == "flat":
            given = flat_counts(keys, limits.long(), bound["floor"]).int()
            limits = whole
    kind = 0 if given is not None else _POLICY.get(policy, 0)
    kind = 0 if policy == "mass" and bound["mass"] >= 1 else kind
    threshold = -bound["threshold"] if bound["lowest"] else bound["threshold"]
    # Bits as arguments: a tensor of them would be a copy from the host, which no graph may hold.
    share, mass = (struct.unpack("q", struct.pack("d", bound[n]))[0] for n in ("share", "mass"))
    counts = bound["counts"]
    strides = (0, 0) if counts is None else [
        0 if counts.shape[i] == 1 else counts.stride(i) for i in (0, 1)
    ]  # fmt: skip
    with on_device("select", score):
        select_kernel[(rows,)](
            score, score if keys is None else keys, score if counts is None else counts, lengths,
            limits, limits if given is None else given,
            float(threshold), share, mass, index, count, axes["H"], size, axes["K"], floor,
            min(bound["first"], size), min(bound["last"], size), *score.stride()[:2],
            *strides, POLICY=kind, LOWEST=bound["lowest"], KEYED=keys is not None,
            COUNTED=counts is not None, GIVEN=given is not None,
            BN=min(ROW, power_of_two(size)), num_warps=16 if size >= ROW else 8, **FUSION,
        )  # fmt: skip
