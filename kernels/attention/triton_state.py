# SPDX-License-Identifier: Apache-2.0
"""`append` and `merge_states` in Triton. Not yet seen running on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.attention.limits import FORMAT, as_bits, page_strides, scale_strides
from headrace.kernels.common.triton import FUSION, on_device, power_of_two

from .triton_tile import cos_sin, encode, own_scale, phase_step

TOKENS = 16  # of one program; a run of consecutive slots is written as rows of the transposed page


@triton.jit
def codes_of(x, scale, mask, FORMAT: tl.constexpr, OWN_SCALE: tl.constexpr):
    """Codes of rows x [T, D] with scales at `scale` [T], written if they are their own."""
    if OWN_SCALE:
        step = own_scale(x, FORMAT)
        tl.store(scale, step, mask=mask)
    else:
        step = tl.load(scale, mask=mask, other=0.0)
    step = step[:, None]
    return encode(tl.where(step == 0.0, 0.0, x / tl.where(step == 0.0, 1.0, step)), FORMAT)


@triton.jit
def append_rows(
    t, mask, head,
    k, v, k_pages, v_pages, where, inv_freq, k_row, k_head, v_row, v_head,
    k_page, k_page_head, v_page, v_page_head, freq_axis, k_scale, v_scale,
    k_scale_page, k_scale_head, k_scale_slot, v_scale_page, v_scale_head, v_scale_slot,
    pages, half, D: tl.constexpr, BD: tl.constexpr, P: tl.constexpr, ROTARY: tl.constexpr,
    AXES: tl.constexpr, FORMAT: tl.constexpr, OWN_SCALE: tl.constexpr,
):  # fmt: skip
    """Writes tokens t [BT] of one head into their slots."""
    d = tl.arange(0, BD)
    at_where = where + t * (2 + AXES)
    page = tl.load(at_where, mask=mask, other=0)
    slot = tl.load(at_where + 1, mask=mask, other=0)
    mask = mask & (page >= 0) & (page < pages) & (slot >= 0) & (slot < P)
    both = mask[:, None] & (d < D)[None, :]
    at = k + (t * k_row + head * k_head)[:, None]
    key = tl.load(at + d[None, :], mask=both, other=0.0).to(tl.float32)
    if ROTARY:
        low_half = d < half
        turns = d < 2 * half
        mate = tl.where(low_half, d + half, d - half)
        other = tl.load(at + mate[None, :], mask=both & turns[None, :], other=0.0).to(tl.float32)
        freq = tl.load(inv_freq + tl.where(low_half, d, d - half), mask=turns, other=0.0)
        offset = tl.load(at_where + 2, mask=mask, other=0)[:, None]
        if AXES == 3:
            axis = tl.load(freq_axis + tl.where(low_half, d, d - half), mask=turns, other=0)
            more = tl.load(at_where + 3, mask=mask, other=0)
            offset = tl.where((axis == 1)[None, :], more[:, None], offset)
            more = tl.load(at_where + 4, mask=mask, other=0)
            offset = tl.where((axis == 2)[None, :], more[:, None], offset)
        c, s = cos_sin(offset * phase_step(freq)[None, :])
        key = key * c + tl.where(low_half[None, :], -other, other) * s
    to_k = k_pages + (page * k_page + head * k_page_head + slot)[:, None] + d[None, :] * P
    if FORMAT > 2:
        scale = k_scale + page * k_scale_page + head * k_scale_head + slot * k_scale_slot
        tl.store(to_k, codes_of(key, scale, mask, FORMAT, OWN_SCALE), mask=both)
    else:
        tl.store(to_k, key.to(k_pages.dtype.element_ty), mask=both)
    value = tl.load(v + (t * v_row + head * v_head)[:, None] + d[None, :], mask=both, other=0.0).to(
        tl.float32
    )
    to_v = v_pages + (page * v_page + head * v_page_head + slot * D)[:, None] + d[None, :]
    if FORMAT > 2:
        scale = v_scale + page * v_scale_page + head * v_scale_head + slot * v_scale_slot
        tl.store(to_v, codes_of(value, scale, mask, FORMAT, OWN_SCALE), mask=both)
    else:
        tl.store(to_v, value.to(v_pages.dtype.element_ty), mask=both)


@triton.jit(do_not_specialize=["tokens", "pages"])
def append_kernel(
    k, v, k_pages, v_pages, where, inv_freq, k_row, k_head, v_row, v_head,
    k_page, k_page_head, v_page, v_page_head, freq_axis, k_scale, v_scale,
    k_scale_page, k_scale_head, k_scale_slot, v_scale_page, v_scale_head, v_scale_slot,
    tokens, pages, half, D: tl.constexpr, BD: tl.constexpr, P: tl.constexpr, BT: tl.constexpr,
    ROTARY: tl.constexpr, AXES: tl.constexpr, FORMAT: tl.constexpr, OWN_SCALE: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    append_rows(
        t, t < tokens, tl.program_id(1).to(tl.int64),
        k, v, k_pages, v_pages, where, inv_freq, k_row, k_head, v_row, v_head,
        k_page, k_page_head, v_page, v_page_head, freq_axis, k_scale, v_scale,
        k_scale_page, k_scale_head, k_scale_slot, v_scale_page, v_scale_head, v_scale_slot,
        pages, half, D, BD, P, ROTARY, AXES, FORMAT, OWN_SCALE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def merge_states_kernel(
    o_a, lse_a, o_b, lse_b, o, lse, rows, D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    mask = r < rows
    la = tl.load(lse_a + r, mask=mask, other=0.0)
    lb = tl.load(lse_b + r, mask=mask, other=0.0)
    top = tl.maximum(la, lb)
    base = tl.where(top == float("-inf"), 0.0, top)
    wa, wb = tl.exp(la - base), tl.exp(lb - base)
    total = wa + wb
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    tl.store(
        lse + r,
        tl.where(total == 0.0, float("-inf"), base + tl.log(tl.maximum(total, 1.0))),
        mask=mask,
    )
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        at = r[:, None] * D + d[None, :]
        both = mask[:, None] & (d < D)[None, :]
        # A state of weight 0 may hold anything; it is not read.
        a = tl.load(o_a + at, mask=both & (wa != 0.0)[:, None], other=0.0).to(tl.float32)
        b = tl.load(o_b + at, mask=both & (wb != 0.0)[:, None], other=0.0).to(tl.float32)
        merged = a * (wa * share)[:, None] + b * (wb * share)[:, None]
        tl.store(o + at, merged.to(o.dtype.element_ty), mask=both)


def append(bound, axes, outs):
    """`headrace.ops.append` on CUDA tensors. A token with no page or slot inside is not written."""
    k, v, k_pages, v_pages = bound["k"], bound["v"], bound["k_pages"], bound["v_pages"]
    to_k = page_strides("append", "k_pages", k_pages)
    to_v = page_strides("append", "v_pages", v_pages)
    k_scale, v_scale = (scale_strides(bound[n]) for n in ("k_scale", "v_scale"))
    inv_freq = bound["inv_freq"]
    if k.numel() == 0:
        return
    with on_device("append", k):
        append_kernel[(triton.cdiv(axes["T"], TOKENS), axes["Hkv"])](
            k,
            v,
            as_bits(k_pages),
            as_bits(v_pages),
            bound["where"],
            inv_freq,
            *k.stride()[:2],
            *v.stride()[:2],
            *to_k,
            *to_v,
            bound["freq_axis"],
            bound["k_scale"],
            bound["v_scale"],
            *k_scale,
            *v_scale,
            axes["T"],
            axes["N"],
            0 if inv_freq is None else inv_freq.numel(),
            D=axes["D"],
            BD=power_of_two(axes["D"]),
            P=axes["P"],
            BT=TOKENS,
            ROTARY=inv_freq is not None,
            AXES=bound["where"].shape[1] - 2,
            FORMAT=FORMAT.get(k_pages.dtype, 0),
            OWN_SCALE=k_scale[2] == 1,
            num_warps=4,
            **FUSION,
        )


def merge_states(bound, axes, outs):
    """`headrace.ops.merge_states` on CUDA tensors (or, interpreted, small CPU tensors)."""
    o, lse = outs
    rows = lse.numel()
    if rows == 0:
        return
    with on_device("merge_states", o):
        merge_states_kernel[(triton.cdiv(rows, 16),)](
            bound["o_a"],
            bound["lse_a"],
            bound["o_b"],
            bound["lse_b"],
            o,
            lse,
            rows,
            D=axes["D"],
            BD=min(256, power_of_two(axes["D"])),
            BR=16,
            num_warps=4,
            **FUSION,
        )
