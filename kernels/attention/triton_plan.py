# SPDX-License-Identifier: Apache-2.0
"""Which entries a block of query rows sees, and how its view is cut; read by `triton_paged`.

Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNLIMITED = tl.constexpr(4611686018427387904)  # as in visible.h: beyond it, sums could overflow


@triton.jit
def entry_keys(entries, index, last, pages, oldest, newest, P: tl.constexpr, FIELDS: tl.constexpr):
    """First and one-past-last key of an entry, from its first, that rows of these orders see."""
    at = entries + index.to(tl.int64) * FIELDS
    mask = index < last
    page = tl.load(at, mask=mask, other=0)
    first = tl.load(at + 1, mask=mask, other=0)
    count = tl.load(at + 2, mask=mask, other=0)
    order = tl.load(at + 5, mask=mask, other=0)
    reach = tl.minimum(tl.load(at + 6, mask=mask, other=0), UNLIMITED)
    inside = (page >= 0) & (page < pages) & (first >= 0) & (count > 0) & (count <= P - first)
    count = tl.where(inside, count, 0)
    lo = tl.minimum(tl.maximum(oldest - reach + 1 - order, 0), count)
    hi = tl.minimum(tl.maximum(newest - order + 1, lo), count)
    return lo, hi


@triton.jit(do_not_specialize=["streams", "pages", "few"])
def paged_count_kernel(
    plan,
    entries,
    entry_indptr,
    q_indptr,
    q_order,
    streams,
    pages,
    group,
    split,
    few,
    P: tl.constexpr,
    BM: tl.constexpr,
    SPLIT_BLOCKS: tl.constexpr,
    FIELDS: tl.constexpr,
    LISTS: tl.constexpr,
):
    """Row of the plan, int64 [8], of a block (of every list of a block): first row of the stream,
    rows, block of the stream, first and last entry, oldest and newest order, splits. Streams of no
    more rows than `few` have no block: they are another kernel's."""
    pid = tl.program_id(0) // LISTS
    lane = tl.arange(0, 64)
    before = 0  # blocks of the streams already passed
    stream = 0
    start = 0  # first block of the stream found
    for s in range(0, streams, 64):
        mask = s + lane < streams
        rows = tl.load(q_indptr + s + lane + 1, mask=mask, other=0) - tl.load(
            q_indptr + s + lane, mask=mask, other=0
        )
        rows = tl.where(rows > few, rows, 0)
        ends = before + tl.cumsum((rows * group + BM - 1) // BM, 0)
        passed = mask & (ends <= pid)
        stream += tl.sum(passed.to(tl.int32), 0)
        start = tl.maximum(start, tl.max(tl.where(passed, ends, 0), 0))
        before = tl.max(ends, 0)
    to = plan + tl.program_id(0).to(tl.int64) * 8
    if stream < streams:
        row = tl.load(q_indptr + stream)
        rows = tl.load(q_indptr + stream + 1) - row
        index = stream * LISTS + tl.program_id(0) % LISTS
        first = tl.load(entry_indptr + index)
        last = tl.load(entry_indptr + index + 1)
        block = pid - start
        position = (block * BM + tl.arange(0, BM)) // group
        valid = position < rows
        order = tl.load(q_order + row + position, mask=valid, other=0)
        oldest = tl.min(tl.where(valid, order, 9223372036854775807), 0)
        newest = tl.max(tl.where(valid, order, -9223372036854775807), 0)
        visible = tl.zeros([64], tl.int64)
        for e in range(first, last, 64):
            lo, hi = entry_keys(entries, e + lane, last, pages, oldest, newest, P, FIELDS)
            visible += hi - lo
        total = tl.sum(visible, 0)
        splits = tl.maximum((total + split - 1) // split, 1)
        splits = tl.where((rows * group + BM - 1) // BM > SPLIT_BLOCKS, 1, splits)
        tl.store(to, row.to(tl.int64))
        tl.store(to + 1, rows.to(tl.int64))
        tl.store(to + 2, block.to(tl.int64))
        tl.store(to + 3, first.to(tl.int64))
        tl.store(to + 4, last.to(tl.int64))
        tl.store(to + 5, oldest)
        tl.store(to + 6, newest)
        tl.store(to + 7, splits)
    else:
        tl.store(to + 7, (stream * 0).to(tl.int64))


@triton.jit(do_not_specialize=["blocks"])
def paged_cut_kernel(plan, work, blocks, BLOCK: tl.constexpr):
    """work int32 [blocks + 1]: the first split of every block, and their number."""
    lane = tl.arange(0, BLOCK)
    done = 0
    for b in range(0, blocks, BLOCK):
        mask = b + lane < blocks
        splits = tl.load(plan + (b + lane).to(tl.int64) * 8 + 7, mask=mask, other=0).to(tl.int32)
        ends = done + tl.cumsum(splits, 0)
        tl.store(work + b + lane, ends - splits, mask=mask)
        done = tl.max(ends, 0)
    tl.store(work + blocks, done)
