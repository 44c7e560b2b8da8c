# SPDX-License-Identifier: Apache-2.0
"""`append_absorb` in Triton: one launch, a program for each head of each stream.

A program takes its state strip by strip of columns through all evicted tokens, and only then
overwrites their slots. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.attention.limits import FORMAT, as_bits, page_strides, scale_strides
from headrace.kernels.attention.triton_state import append_rows
from headrace.kernels.attention.triton_tile import cos_sin, decode, phase_step
from headrace.kernels.common.triton import FUSION, on_device, power_of_two
from headrace.kernels.common.triton_bounds import row_of, span
from headrace.kernels.linear_attention.triton import phi

TOKENS = 16  # absorbed at a time, the least depth of a dot


@triton.jit
def turn(x, other, sign, offset, freq, axis, AXES: tl.constexpr):
    """x [T, D], whose mates are `other`, turned by offsets along each axis ([T] each)."""
    along = offset[0][:, None]
    if AXES == 3:
        along = tl.where((axis == 1)[None, :], offset[1][:, None], along)
        along = tl.where((axis == 2)[None, :], offset[2][:, None], along)
    c, s = cos_sin(along * phase_step(freq)[None, :])
    return x * c + sign[None, :] * other * s


@triton.jit
def offsets(at, mask, AXES: tl.constexpr):
    """One offset along each of three axes, [T] each; what there is not is 0."""
    x = tl.load(at, mask=mask, other=0)
    y = tl.zeros_like(x)
    z = tl.zeros_like(x)
    if AXES == 3:
        y = tl.load(at + 1, mask=mask, other=0)
        z = tl.load(at + 2, mask=mask, other=0)
    return x, y, z


@triton.jit
def powers(log_decay, n):
    """e^(n log_decay), 1 where n is 0 whatever the decay."""
    return tl.where(n == 0, 1.0, tl.exp(tl.where(n == 0, 0.0, log_decay * n.to(tl.float32))))


@triton.jit(do_not_specialize=["tokens", "states", "pages"])
def append_absorb_kernel(
    k, v, k_pages, v_pages, where, evicted, state, norm, indptr, rows, log_decay, count,
    inv_freq, k_row, k_head, v_row, v_head, k_page, k_page_head, v_page, v_page_head,
    freq_axis, k_scale, v_scale, k_scale_page, k_scale_head, k_scale_slot,
    v_scale_page, v_scale_head, v_scale_slot, tokens, states, pages, half,
    D: tl.constexpr, BD: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
    ROTARY: tl.constexpr, AXES: tl.constexpr, FORMAT: tl.constexpr, OWN_SCALE: tl.constexpr,
    FEATURE: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1)
    row, there, whole = row_of(rows, b, states, D)
    place = row * tl.num_programs(0) + head
    begin, size = span(indptr, b, tokens)
    end = begin + size
    d = tl.arange(0, BD)
    low, turns = d < half, d < 2 * half
    mate = tl.where(low, d + half, tl.where(turns, d - half, d))
    sign = tl.where(low, -1.0, tl.where(turns, 1.0, 0.0))
    freq = tl.zeros([BD], tl.float64)
    axis = tl.zeros([BD], tl.int32)
    if ROTARY:  # where nothing turns, the frequency is 0
        freq = tl.load(inv_freq + tl.where(low, d, d - half), mask=turns, other=0.0)
        if AXES == 3:
            axis = tl.load(freq_axis + tl.where(low, d, d - half), mask=turns, other=0)
    by = 0.0
    if log_decay is not None:
        by = tl.load(log_decay + head)
    for strip in range(0, D, BV):
        j = strip + tl.arange(0, BV)
        owned = (d < whole)[:, None] & (j < D)[None, :]
        at_s = state + (place * D + d[:, None]) * D + j[None, :]
        s = tl.load(at_s, mask=owned, other=0.0)
        z = tl.zeros([BD], tl.float32)
        if norm is not None:
            z = tl.load(norm + place * D + d, mask=d < whole, other=0.0)
        taken = 0
        for i in range(begin, end, BT):
            t = (i + tl.arange(0, BT)).to(tl.int64)
            mask = t < end
            page = tl.load(where + t * (2 + AXES), mask=mask, other=-1)
            slot = tl.load(where + t * (2 + AXES) + 1, mask=mask, other=-1)
            mask = mask & (page >= 0) & (page < pages) & (slot >= 0) & (slot < P)
            held = evicted + t * (1 + 2 * AXES)
            mask = mask & (tl.load(held, mask=mask, other=0) != 0)
            both = mask[:, None] & (d < D)[None, :]
            at = k_pages + (page * k_page + head * k_page_head + slot)[:, None]
            key = decode(tl.load(at + d[None, :] * P, mask=both, other=0), FORMAT).to(tl.float32)
            at_v = v_pages + (page * v_page + head * v_page_head + slot * D)[:, None]
            some = mask[:, None] & (j < D)[None, :]
            value = decode(tl.load(at_v + j[None, :], mask=some, other=0), FORMAT).to(tl.float32)
            if FORMAT > 2:
                at_k = k_scale + page * k_scale_page + head * k_scale_head + slot * k_scale_slot
                step = tl.load(at_k, mask=mask, other=0.0)
                key = key * step[:, None]
                at_v = v_scale + page * v_scale_page + head * v_scale_head + slot * v_scale_slot
                value = value * tl.load(at_v, mask=mask, other=0.0)[:, None]
            f = key
            if ROTARY:
                other = tl.load(at + mate[None, :] * P, mask=both, other=0)
                other = decode(other, FORMAT).to(tl.float32)
                if FORMAT > 2:
                    other = other * step[:, None]
                x, y, w = offsets(held + 1, mask, AXES)
                back = (-x, -y, -w)
                to = offsets(held + 1 + AXES, mask, AXES)
                f = turn(key, other, sign, back, freq, axis, AXES)
                if RAW or FEATURE == 0:
                    away = (to[0] - x, to[1] - y, to[2] - w)
                    hat = turn(key, other, sign, away, freq, axis, AXES)
                    f = phi(f, FEATURE)
                else:
                    g = turn(other, key, -sign, back, freq, axis, AXES)
                    f = phi(f, FEATURE)
                    hat = turn(f, phi(g, FEATURE), sign, to, freq, axis, AXES)
            else:
                f = phi(key, FEATURE)
                hat = f
                if RAW:
                    hat = key
            # A token is decayed once by each that comes after it.
            here = mask.to(tl.int32)
            n = tl.sum(here, 0)
            weight = tl.where(mask, powers(by, n - tl.cumsum(here, 0)), 0.0)[:, None]
            hat = tl.where(both, hat * weight, 0.0)
            total = powers(by, n)
            s = s * total + tl.dot(tl.trans(hat), value, input_precision="tf32x3")
            z = z * total + tl.sum(tl.where(both, f * weight, 0.0), 0)
            taken += n
        tl.store(at_s, s, mask=owned)
        if strip == 0:
            if norm is not None:
                tl.store(norm + place * D + d, z, mask=d < whole)
            if count is not None:
                first = there & (head == 0)
                old = tl.load(count + row, mask=first, other=0)
                tl.store(count + row, old + taken, mask=first)
    tl.debug_barrier()  # every thread of the program has read the slots
    for i in range(begin, end, BT):
        t = (i + tl.arange(0, BT)).to(tl.int64)
        append_rows(
            t, t < end, head,
            k, v, k_pages, v_pages, where, inv_freq, k_row, k_head, v_row, v_head,
            k_page, k_page_head, v_page, v_page_head, freq_axis, k_scale, v_scale,
            k_scale_page, k_scale_head, k_scale_slot, v_scale_page, v_scale_head, v_scale_slot,
            pages, half, D, BD, P, ROTARY, AXES, FORMAT, OWN_SCALE,
        )  # fmt: skip


def append_absorb(bound, axes, outs):
    """`headrace.ops.append_absorb` on CUDA tensors (or, interpreted, small CPU tensors)."""
    k, v, k_pages, v_pages = (bound[x] for x in ("k", "v", "k_pages", "v_pages"))
    strides = (
        *k.stride()[:2],
        *v.stride()[:2],
        *page_strides("append_absorb", "k_pages", k_pages),
        *page_strides("append_absorb", "v_pages", v_pages),
    )
    k_scale, v_scale = (scale_strides(bound[n]) for n in ("k_scale", "v_scale"))
    inv_freq = bound["inv_freq"]
    if k.numel() == 0 or axes["B"] == 0:
        return
    names = ("where", "evicted", "state", "norm", "indptr", "rows", "log_decay", "count")
    codes, axes_of = FORMAT.get(k_pages.dtype, 0), bound["where"].shape[1] - 2
    strip = 64 if axes["D"] <= 128 else 32
    if codes > 2 and (axes_of == 3 or axes["D"] > 128):  # which take registers too
        strip //= 2
    with on_device("append_absorb", k):
        append_absorb_kernel[(axes["Hkv"], axes["B"])](
            k, v, as_bits(k_pages), as_bits(v_pages), *(bound[n] for n in names), inv_freq,
            *strides, bound["freq_axis"], bound["k_scale"], bound["v_scale"], *k_scale, *v_scale,
            axes["T"], axes["S"], axes["N"], 0 if inv_freq is None else inv_freq.numel(),
            D=axes["D"], BD=power_of_two(axes["D"]), P=axes["P"], BT=TOKENS,
            BV=strip, ROTARY=inv_freq is not None,
            AXES=axes_of, FORMAT=codes,
            OWN_SCALE=k_scale[2] == 1, FEATURE=bound["feature"], RAW=bound["raw"],
            num_warps=8, num_stages=1, **FUSION,
        )  # fmt: skip
