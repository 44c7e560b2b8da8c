# SPDX-License-Identifier: Apache-2.0
"""`lora` and `lora_rows` in Triton: tiles of 16 rows that share their adapters, in two launches.

The first fills an fp32 bridge, a block of 16 rank rows over the whole depth a program; the second
adds the bridge times B to a strip of y. Every sum has one owner and one order, so nothing is zeroed
first, nothing is added atomically, and a row meets the same instructions whatever comes with it.
The route, which rows form which tile, is made on the device. Not yet seen running on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, low_precision, on_device, product
from headrace.kernels.common.tuned import choice
from headrace.kernels.lora.route import TILE, route
from headrace.kernels.lora.triton_rows import (
    rank_list,
    rank_rows,
    slot_at,
    tile_at,
    tile_rows,
    weights_at,
)


@triton.jit
def lora_shrink_kernel(
    x,
    a,
    a_scale,
    rows,
    row_indptr,
    ranks,
    slots,
    scale,
    weights,
    order,
    tiles,
    bridge,
    tokens,
    slots_count,
    rows_count,
    pool_rows,
    depth,
    x_row,
    a_row,
    a_slice,
    a_group,
    most,
    SLICES: tl.constexpr,
    WIDTH: tl.constexpr,
    STACK: tl.constexpr,
    BITS: tl.constexpr,
    LOW: tl.constexpr,
    BK: tl.constexpr,
):
    """bridge [tiles, 16, SLICES, WIDTH, most]: one (tile, block of rank rows, slice, adapter)."""
    tile = tl.program_id(0)
    block = tl.program_id(1)
    slice_ = tl.program_id(2) // WIDTH
    w = tl.program_id(2) % WIDTH
    start, count, leader = tile_at(tiles, order, tile, tokens)
    if count == 0:
        return
    slot = slot_at(slots, leader, slots_count, WIDTH, w)
    if slot < 0:
        return
    first, rank = rank_list(rows, row_indptr, ranks, slot, slice_, most, SLICES, STACK)
    r = block * 16 + tl.arange(0, 16)
    if block * 16 >= rank:
        return
    if STACK > 0:
        row = (first + r).to(tl.int64)
        there = r < rank
    else:
        row, there = rank_rows(rows, first, r, rank, rows_count, pool_rows)
    token, own = tile_rows(order, start, count, tokens)
    acc = tl.zeros([16, 16], tl.float32)
    groups = depth // a_group
    for k0 in range(0, depth, BK):
        k = k0 + tl.arange(0, BK)
        mask = there[:, None] & (k[None, :] < depth)
        down = weights_at(
            a + slice_ * a_slice,
            a_scale + slice_ * groups if BITS > 0 else a_scale,
            row[:, None],
            k[None, :],
            mask,
            a_row,
            a_group,
            groups * SLICES,
            BITS,
        )
        rows_in = tl.load(
            x + token[:, None] * x_row + k[None, :],
            mask=own[:, None] & (k[None, :] < depth),
            other=0.0,
        )
        acc += product(rows_in, tl.trans(down), LOW)
    factor = tl.load(scale + slot)
    if weights is not None:
        each = tl.load(weights + token * WIDTH + w, mask=own, other=0.0)
        acc *= (factor * each)[:, None]
    else:
        acc *= factor
    m = tl.arange(0, 16)
    at = ((tile * 16 + m[:, None]) * SLICES + slice_) * WIDTH + w
    tl.store(bridge + at.to(tl.int64) * most + r[None, :], acc, mask=r[None, :] < rank)


@triton.jit
def lora_expand_kernel(
    y,
    b,
    b_scale,
    rows,
    row_indptr,
    ranks,
    slots,
    scale,
    weights,
    slice_ends,
    bias,
    gain,
    base_bias,
    epilogue,
    order,
    tiles,
    bridge,
    tokens,
    slots_count,
    rows_count,
    pool_rows,
    biases,
    gains,
    outputs,
    y_row,
    b_slot,
    b_rank,
    b_col,
    b_group,
    most,
    SLICES: tl.constexpr,
    WIDTH: tl.constexpr,
    STACK: tl.constexpr,
    BITS: tl.constexpr,
    BN: tl.constexpr,
):
    """Columns [BN * program_id(1), ...) of slice program_id(2), of the rows of one tile."""
    tile = tl.program_id(0)
    slice_ = tl.program_id(2)
    start, count, leader = tile_at(tiles, order, tile, tokens)
    if count == 0:
        return
    begin = 0
    end = outputs
    if SLICES > 1:
        end = tl.minimum(tl.load(slice_ends + slice_), outputs)
        if slice_ > 0:
            begin = tl.maximum(tl.load(slice_ends + slice_ - 1), 0)
    if begin + tl.program_id(1) * BN >= end:
        return
    n = begin + tl.program_id(1) * BN + tl.arange(0, BN)
    m = tl.arange(0, 16)
    token, own = tile_rows(order, start, count, tokens)
    acc = tl.zeros([16, BN], tl.float32)
    gain_row = -1
    for w in range(WIDTH):
        slot = slot_at(slots, leader, slots_count, WIDTH, w)
        if slot >= 0:
            first, rank = rank_list(rows, row_indptr, ranks, slot, slice_, most, SLICES, STACK)
            at = ((tile * 16 + m) * SLICES + slice_) * WIDTH + w
            for r0 in range(0, rank, 16):
                r = r0 + tl.arange(0, 16)
                c = tl.load(
                    bridge + at[:, None].to(tl.int64) * most + r[None, :],
                    mask=r[None, :] < rank,
                    other=0.0,
                )
                if STACK > 0:
                    mask = (r[:, None] < rank) & (n[None, :] < end)
                    up = tl.load(
                        b
                        + slot.to(tl.int64) * b_slot
                        + r[:, None] * b_rank
                        + n[None, :].to(tl.int64) * b_col,
                        mask=mask,
                        other=0.0,
                    )
                else:
                    row, there = rank_rows(rows, first, r, rank, rows_count, pool_rows)
                    mask = there[:, None] & (n[None, :] < end)
                    up = weights_at(
                        b,
                        b_scale,
                        row[:, None],
                        n[None, :],
                        mask,
                        b_slot,
                        b_group,
                        outputs // b_group,
                        BITS,
                    )
                acc += tl.dot(c, up.to(tl.float32), input_precision="ieee")
            if epilogue is not None:
                if bias is not None:
                    bias_row = tl.load(epilogue + slot * 2)
                    if (bias_row >= 0) & (bias_row < biases):
                        more = tl.load(bias + bias_row * outputs + n, mask=n < end, other=0.0)
                        factor = tl.load(scale + slot)
                        if weights is not None:
                            each = tl.load(weights + token * WIDTH + w, mask=own, other=0.0)
                            acc += (factor * each)[:, None] * more[None, :]
                        else:
                            acc += factor * more[None, :]
                named = tl.load(epilogue + slot * 2 + 1)
                gain_row = tl.where((named >= 0) & (named < gains), named, gain_row)
    at_y = y + token[:, None] * y_row + n[None, :]
    mask_y = own[:, None] & (n[None, :] < end)
    old = tl.load(at_y, mask=mask_y, other=0.0).to(tl.float32)
    new = old + acc
    if gain is not None and gain_row >= 0:
        base = tl.zeros([BN], tl.float32)
        if base_bias is not None:
            base = tl.load(base_bias + n, mask=n < end, other=0.0)
        by = tl.load(gain + gain_row * outputs + n, mask=n < end, other=0.0)
        new = by[None, :] * (old - base[None, :] + acc) + base[None, :]
    tl.store(at_y, new.to(y.dtype.element_ty), mask=mask_y)


def launch(op, bound, axes, stack, most, a_strides, b_strides):
    """The two launches for a stack (rank of it) or a pool (stack 0)."""
    x, y, a, b, slots = (bound[name] for name in ("x", "y", "a", "b", "slots"))
    if 0 in (axes["T"], axes["N"], axes["S"]):
        return
    slots = slots.view(axes["T"], -1)
    slices, width = axes.get("J", 1), slots.shape[1]
    order, tiles = bound.get("order"), bound.get("tiles")
    if order is None:
        order, tiles = route(slots)
    a_scale, b_scale = bound.get("a_scale"), bound.get("b_scale")
    bits = 0 if a_scale is None else 4 if a.dtype == torch.uint8 else 8
    low = bits == 0 and low_precision(x, a)
    shared = (bound.get("rows"), bound.get("row_indptr"), bound["ranks"])
    there = (axes["T"], axes["S"], axes.get("M", 0), axes.get("C", 0))
    epilogues = [0 if bound.get(name) is None else len(bound[name]) for name in ("bias", "gain")]
    columns = axes["N"]
    bridge = x.new_empty((axes["T"], TILE, slices, width, max(most, 1)), dtype=torch.float32)
    default = dict(depth=128 if low else 64, columns=128, warps=4)
    made = choice("lora", f"{axes['K']} {bits} {'16-bit' if low else 'fp32'}", x, default)
    block_k, block_n = made["depth"], made["columns"]
    form = dict(SLICES=slices, WIDTH=width, STACK=stack, BITS=bits)
    common = dict(**form, num_warps=made["warps"], **FUSION)
    with on_device(op, x):
        if most:
            lora_shrink_kernel[(axes["T"], triton.cdiv(most, TILE), slices * width)](
                x,
                a,
                a_scale,
                *shared,
                slots,
                bound["scale"],
                bound.get("weights"),
                order,
                tiles,
                bridge,
                *there,
                axes["K"],
                x.stride(0),
                *a_strides,
                1 if a_scale is None else axes["K"] // a_scale.shape[-1],
                max(most, 1),
                BK=block_k,
                LOW=low,
                num_stages=3 if low else 2,
                **common,
            )
        lora_expand_kernel[(axes["T"], triton.cdiv(columns, block_n), slices)](
            y,
            b,
            b_scale,
            *shared,
            slots,
            bound["scale"],
            bound.get("weights"),
            bound.get("slice_ends"),
            bound.get("bias"),
            bound.get("gain"),
            bound.get("base_bias"),
            bound.get("epilogue"),
            order,
            tiles,
            bridge,
            *there,
            *epilogues,
            columns,
            y.stride(0),
            *b_strides,
            1 if b_scale is None else columns // b_scale.shape[-1],
            max(most, 1),
            BN=block_n,
            num_stages=2,
            **common,
        )


def lora(bound, axes, outs):
    """`headrace.ops.lora` on CUDA tensors (or, interpreted, small CPU tensors)."""
    b_slot, b_col, b_rank = bound["b"].stride()
    launch("lora", bound, axes, axes["R"], axes["R"], (axes["K"], 0), (b_slot, b_rank, b_col))


def lora_rows(bound, axes, outs):
    """`headrace.ops.lora_rows` on CUDA tensors (or, interpreted, small CPU tensors).

    The bridge has room for the rank rows of all slots together, M, or of one, up to 512: whichever
    is less. A slot of more is beyond this kernel.
    """
    most = min(axes["M"], 512)
    launch("lora_rows", bound, axes, 0, most, bound["a"].stride()[:2], (bound["b"].stride(0), 0, 1))
