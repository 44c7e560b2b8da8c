# SPDX-License-Identifier: Apache-2.0
"""The attention ops in Triton: block shapes and launches. Not yet seen running on a GPU.

Rows of a block share tiles: a NaN or an infinity among the values that one of them sees reaches the
others of its block (64 rows of one stream at most). The reference, and the CPU and CUDA kernels,
keep it to the rows that see it. What no row of a block sees never reaches it.
"""

from __future__ import annotations

import torch
import triton
from headrace.kernels.attention.limits import FORMAT, as_bits, page_strides, scale_strides
from headrace.kernels.common.triton import FUSION, low_precision, on_device, power_of_two
from headrace.kernels.common.tuned import choice
from torch import Tensor

from headrace.contract import QUANTISED

from .blocks import mask_strides
from .triton_blocks import block_attention_kernel
from .triton_dense import attention_join_kernel, attention_kernel
from .triton_paged import paged_join_kernel, paged_kernel
from .triton_plan import paged_count_kernel, paged_cut_kernel
from .triton_state import append, merge_states

__all__ = ["append", "attention", "merge_states", "paged_attention"]

MAX_SPLIT = 512  # keys of a split; smaller if the caller says so
# By padded head dimension, 16 bits or not, masked or not: where the assembler, left to itself,
# would rather spill than take the registers that there are.
TAKES_ALL = {(256, True, False), (128, False, True)}
SPLIT_BLOCKS = 4  # a stream of more blocks fills the device without splits


def blocks_of(kernel: str, x: Tensor, dim: int, low: bool) -> tuple[int, int, int, int, int]:
    """(rows, keys, padded head dimension, warps, stages) of a block."""
    padded = power_of_two(dim)
    warps = 4 if padded <= 64 else 8
    if low and kernel == "paged_attention":  # which turns a query beside the one that it has
        default = dict(rows=16, keys=64 if padded <= 128 else 32, warps=warps, stages=2)
    elif low:
        default = dict(rows=64 if padded <= 128 else 32, keys=64, warps=warps, stages=2)
    else:  # without tensor cores a product keeps whole tiles in registers
        wide = padded > (64 if kernel == "paged_attention" else 128)
        default = dict(rows=16, keys=16, warps=8 if wide else 4, stages=1)
    made = choice(kernel, f"{dim} {'16-bit' if low else 'fp32'}", x, default)
    return made["rows"], made["keys"], padded, made["warps"], made["stages"]


def attention(bound, axes, outs):
    """`headrace.ops.attention` on CUDA tensors (or, interpreted, small CPU tensors)."""
    q, k, v, (o, lse) = bound["q"], bound["k"], bound["v"], outs
    batches, q_heads, kv_heads = axes["B"], axes["Hq"], axes["Hkv"]
    q_len, k_len, dim = axes["Lq"], axes["Lk"], axes["D"]
    if o.numel() == 0:
        return
    low = low_precision(q, k, v)
    rows, keys, padded, warps, stages = blocks_of("attention", q, dim, low)
    masked = bound["block_mask"] is not None
    if low and padded > 128 and masked:
        keys = min(keys, 32)  # two blocks fit a multiprocessor, and nothing spills
    mask, size = bound["block_mask"], min(bound["block_size"], max(q_len, k_len))
    windowed = bound["window"] is not None
    unlimited = q_len + k_len
    window = min(bound["window"], unlimited) if windowed else unlimited
    sinks = min(bound["sinks"], k_len) if windowed or mask is not None else 0
    # Query heads that share a mask share their tiles.
    heads = q_heads // kv_heads if mask is None or mask.shape[1] == 1 else 1
    sets = q_heads // heads
    tiles = triton.cdiv(size * heads, rows)
    blocks = triton.cdiv(q_len * heads, rows)
    if mask is not None:
        blocks = triton.cdiv(q_len, size) * tiles
    split, splits = unlimited + 1, 1
    if blocks == 1:
        split = min(bound["split"], MAX_SPLIT)
        hull = window + q_len if bound["causal"] else 2 * window + q_len
        splits = triton.cdiv(max(1, min(k_len, hull + sinks)), split)
        if mask is not None:
            split = triton.cdiv(split, size)  # in key blocks
            splits = max(1, triton.cdiv(mask.shape[3], split))
    sink_logits = bound["sink_logits"]
    part = [o.new_empty(0, dtype=torch.float32)] * 3
    if splits > 1:
        states = batches * sets * splits * rows
        part = [o.new_empty(states * n, dtype=torch.float32) for n in (dim, 1, 1)]
    tensors = (q, k, v, o, lse, *part, sink_logits)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    lengths, scales = (q_len, k_len, window, sinks), (bound["scale"], bound["softcap"])
    options = dict(
        D=dim,
        BD=padded,
        BM=rows,
        BN=keys,
        BS=16 if sinks <= 16 else keys,
        WINDOWED=windowed,
        CAUSAL=bound["causal"],
        CAPPED=bound["softcap"] > 0,
        HAS_SINK=sink_logits is not None,
        LOW=low,
        num_warps=warps,
        num_stages=stages,
        maxnreg=255 if (padded, low, masked) in TAKES_ALL else None,
        **FUSION,
    )
    with on_device("attention", q):
        grid = (blocks * splits * sets * batches,)
        if mask is None:
            attention_kernel[grid](
                *tensors, *strides, q_heads, kv_heads, *lengths, split, splits, *scales, **options
            )
        else:
            block_attention_kernel[grid](
                *tensors,
                mask.view(torch.uint8),
                *strides,
                *mask_strides(mask),
                q_heads,
                kv_heads,
                heads,
                *lengths,
                size,
                tiles,
                split,
                splits,
                *scales,
                **options,
            )
        if splits > 1:
            attention_join_kernel[(batches * sets,)](
                o,
                lse,
                *part,
                sink_logits,
                q_heads,
                sets,
                q_len,
                splits,
                D=dim,
                BD=padded,
                BM=rows,
                HAS_SINK=sink_logits is not None,
                num_warps=warps,
                **FUSION,
            )


def paged_attention(bound, axes, outs, few=0):
    """`headrace.ops.paged_attention` on CUDA tensors (or, interpreted, small CPU tensors).

    few: only streams of more rows are written.
    """
    q, k, v, (o, lse) = bound["q"], bound["k_pages"], bound["v_pages"], outs
    q_heads, kv_heads, dim, page = axes["Hq"], axes["Hkv"], axes["D"], axes["P"]
    lists, shared = axes["G"], axes["Hkv"] // axes["G"]
    k_page, k_head = page_strides("paged_attention", "k_pages", k)
    v_page, v_head = page_strides("paged_attention", "v_pages", v)
    k_scale, v_scale = (list(scale_strides(bound[n])) for n in ("k_scale", "v_scale"))
    if axes["Hp"] < kv_heads:  # a page holds one head, whichever it is
        k_head = v_head = k_scale[1] = v_scale[1] = 0
    if o.numel() == 0:
        return
    order = bound["q_pos"] if bound["q_order"] is None else bound["q_order"]
    inv_freq, sink_logits = bound["inv_freq"], bound["sink_logits"]
    # Codes are exact in 16 bits; weights times their scales may be too small for fp16.
    low = q.dtype == torch.bfloat16 if k.dtype in QUANTISED else low_precision(q, k, v)
    rows, keys, padded, warps, stages = blocks_of("paged_attention", q, dim, low)
    keys = min(keys, triton.next_power_of_2(page))
    if k.dtype in QUANTISED and low and bound["q_pos"].dim() > 1:
        keys = min(keys, 32)  # angles of three axes and scales leave registers for no more
    group = q_heads // kv_heads
    split = min(bound["split"], MAX_SPLIT)
    # Bounds that need no look at the device: a block of every stream that is served may be ragged,
    # and only the first SPLIT_BLOCKS blocks of a stream cut its view into splits.
    blocks = axes["T"] * group // rows + min(axes["B"], axes["T"] // (few + 1))
    items = blocks * lists + min(SPLIT_BLOCKS, blocks) * (axes["E"] * page // split)
    blocks *= lists
    plan = q.new_empty(blocks * 8, dtype=torch.int64)
    work = q.new_empty(blocks + 1, dtype=torch.int32)
    states = items * shared * rows if axes["E"] * page > split else 0
    part = [q.new_empty(states * n, dtype=torch.float32) for n in (dim, 1, 1)]
    has_sink = sink_logits is not None
    with on_device("paged_attention", q):
        paged_count_kernel[(blocks,)](
            plan,
            bound["entries"],
            bound["entry_indptr"],
            bound["q_indptr"],
            order,
            axes["B"],
            axes["N"],
            group,
            split,
            few,
            P=page,
            BM=rows,
            SPLIT_BLOCKS=SPLIT_BLOCKS,
            FIELDS=bound["entries"].shape[1],
            LISTS=lists,
            num_warps=2,
            maxnreg=64,  # not told, the assembler would rather spill than take a few more
            **FUSION,
        )
        paged_cut_kernel[(1,)](plan, work, blocks, BLOCK=1024, num_warps=4, **FUSION)
        paged_kernel[(items * shared,)](
            q,
            as_bits(k),
            as_bits(v),
            o,
            lse,
            bound["entries"],
            bound["q_pos"],
            order,
            inv_freq,
            sink_logits,
            plan,
            work,
            *part,
            bound["freq_axis"],
            bound["k_scale"],
            bound["v_scale"],
            *q.stride()[:2],
            k_page,
            k_head,
            v_page,
            v_head,
            *k_scale,
            *v_scale,
            q_heads,
            kv_heads,
            blocks,
            axes["N"],
            0 if inv_freq is None else inv_freq.numel(),
            split,
            bound["scale"],
            bound["softcap"],
            bound["rope_gain"],
            D=dim,
            BD=padded,
            P=page,
            BM=rows,
            BN=keys,
            ROTARY=inv_freq is not None,
            CAPPED=bound["softcap"] > 0,
            HAS_SINK=has_sink,
            LOW=low,
            AXES=1 if bound["q_pos"].dim() == 1 else 3,
            FIELDS=bound["entries"].shape[1],
            LISTS=lists,
            FORMAT=FORMAT.get(k.dtype, 0),
            num_warps=warps,
            num_stages=stages,
            **FUSION,
        )
        if states:
            paged_join_kernel[(blocks * shared,)](
                o,
                lse,
                sink_logits,
                plan,
                work,
                *part,
                q_heads,
                kv_heads,
                blocks,
                D=dim,
                BD=padded,
                BM=rows,
                HAS_SINK=has_sink,
                LISTS=lists,
                num_warps=warps,
                **FUSION,
            )
