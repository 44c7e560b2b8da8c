# SPDX-License-Identifier: Apache-2.0
"""Which rows a program of `lora` in Triton works on. What names a slot, a rank row or a row of the
batch that is not there counts as none. Not yet seen running on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weights_at(base, scales, row, cols, mask, row_stride, group, groups, BITS: tl.constexpr):
    """Weights [rows, cols] of a pool: floats as they are, codes times their group's scale."""
    if BITS == 4:
        byte = cols // 32 * 16 + cols % 16
        pair = tl.load(base + row * row_stride + byte, mask=mask, other=0).to(tl.int32)
        values = (((pair >> (cols % 32 // 16 * 4)) & 15) - 8).to(tl.float32)
    else:
        values = tl.load(base + row * row_stride + cols, mask=mask, other=0)
    if BITS > 0:
        scale = tl.load(scales + row * groups + cols // group, mask=mask, other=0.0)
        values = values.to(tl.float32) * scale
    return values


@triton.jit
def slot_at(slots, row, slots_count, WIDTH: tl.constexpr, w):
    """The slot of one adapter of a row of the batch, -1 for none or one that there is not."""
    slot = tl.load(slots + row * WIDTH + w)
    return tl.where(slot < slots_count, slot, -1)


@triton.jit
def rank_list(
    rows, row_indptr, ranks, slot, slice_, most, SLICES: tl.constexpr, STACK: tl.constexpr
):
    """First entry and number of the rank rows of one slot and slice."""
    if STACK > 0:
        first = slot * STACK
        count = tl.full([], STACK, tl.int32)
    else:
        first = tl.load(row_indptr + slot)
        count = tl.load(row_indptr + slot + 1) - first
    if ranks is not None:
        count = tl.minimum(count, tl.load(ranks + slot * SLICES + slice_))
    return first, tl.minimum(count, most)


@triton.jit
def rank_rows(rows, first, r, rank, rows_count, pool_rows):
    """Entries r of a list as rows of the pool, and which of them there are."""
    at = first + r
    row = tl.load(rows + at, mask=(r < rank) & (at >= 0) & (at < rows_count), other=-1)
    return row.to(tl.int64), (row >= 0) & (row < pool_rows)


@triton.jit
def tile_at(tiles, order, tile, tokens):
    """Where a tile begins in the order, its rows, 0 where it leads out of that, and the first."""
    start = tl.load(tiles + 2 * tile)
    count = tl.load(tiles + 2 * tile + 1)
    count = tl.where((start >= 0) & (start < tokens), tl.minimum(count, tokens - start), 0)
    leader = tl.load(order + start, mask=count > 0, other=-1)
    fits = (count > 0) & (leader >= 0) & (leader < tokens)
    return start, tl.where(fits, tl.minimum(count, 16), 0), leader


@triton.jit
def tile_rows(order, start, count, tokens):
    """The rows of a tile, and which of them there are."""
    m = tl.arange(0, 16)
    token = tl.load(order + start + m, mask=m < count, other=-1).to(tl.int64)
    return token, (token >= 0) & (token < tokens)
