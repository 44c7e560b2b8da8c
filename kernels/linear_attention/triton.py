# SPDX-License-Identifier: Apache-2.0
"""`linear_attention` in Triton: token after token, a strip of the state's columns in registers.

One program owns the columns of one head of one stream, so nothing is added atomically. Streams that
bring many tokens go in chunks, see triton_chunk. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device, power_of_two
from headrace.kernels.common.triton_bounds import row_of, span
from headrace.kernels.common.triton_pieces import pieces

from .triton_chunk import (
    linear_attention_chunk_kernel,
    linear_attention_scan_kernel,
    linear_attention_segment_kernel,
    phi,
    turn,
)

LONG = 24  # tokens that a stream must bring for chunks; a stream's own matter, not its neighbours'
SEGMENT = 512  # tokens
# Columns and rows of a state that a product of the chunks takes at once: with more, the three
# passes of tf32 leave no registers.
STRIP, SLAB = 32, 16


@triton.jit
def forms(
    base, d, mate, sign, cosine, sine, mask, HAS: tl.constexpr, FEATURE: tl.constexpr,
    RAW: tl.constexpr,
):  # fmt: skip
    """The numerator's form of a row, and phi of the row as it came."""
    x = tl.load(base + d, mask=mask, other=0.0).to(tl.float32)
    f = phi(x, FEATURE)
    hat = f
    if RAW:
        hat = x
    if HAS:
        other = tl.load(base + mate, mask=mask, other=0.0).to(tl.float32)
        if not RAW:
            other = phi(other, FEATURE)
        hat = hat * cosine + sign * other * sine
    return tl.where(mask, hat, 0.0), tl.where(mask, f, 0.0)


@triton.jit(do_not_specialize=["tokens", "states"])
def linear_attention_kernel(
    q, k, v, state, norm, new_norm, indptr, rows, log_decay, cosines, sines, count, o,
    tokens, states, longest, q_row, q_head, k_row, k_head, v_row, v_head, half, scale, eps,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    FEATURE: tl.constexpr, RAW: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    b = tl.program_id(1)
    begin, size = span(indptr, b, tokens)
    if size >= longest:
        return
    row, there, held = row_of(rows, b, states, DIM)
    d = tl.arange(0, BD)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    in_d = d < DIM
    inside = (d < held)[:, None] & (j < V_DIM)[None, :]
    heads: tl.constexpr = HEADS // GROUP
    place = state + ((row * heads + head) * DIM + d[:, None]) * V_DIM + j[None, :]
    s = tl.load(place, mask=inside, other=0.0)
    z = tl.zeros([BD], tl.float32)
    if norm is not None:
        z = tl.load(norm + (row * heads + head) * DIM + d, mask=d < held, other=0.0)
    decay = 1.0
    if log_decay is not None:
        decay = tl.exp(tl.load(log_decay + head))
    least = eps
    if count is not None:
        least = eps * tl.load(count + row, mask=there, other=0).to(tl.float32)
    mate, sign, freq, turned = turn(d, half)
    ROPE: tl.constexpr = cosines is not None
    for i in range(0, size):
        t = (begin + i).to(tl.int64)
        cosine = tl.full([BD], 1.0, tl.float32)
        sine = tl.zeros([BD], tl.float32)
        if ROPE:
            cosine = tl.load(cosines + t * half + freq, mask=turned, other=1.0)
            sine = tl.load(sines + t * half + freq, mask=turned, other=0.0)
        if k is not None:
            at = k + t * k_row + head * k_head
            hat, f = forms(at, d, mate, sign, cosine, sine, in_d, ROPE, FEATURE, RAW)
            value = tl.load(v + t * v_row + head * v_head + j, mask=j < V_DIM, other=0.0)
            s = s * decay + hat[:, None] * value.to(tl.float32)[None, :]
            z = z * decay + f
        for g in tl.static_range(GROUP):
            h = head * GROUP + g
            at = q + t * q_row + h * q_head
            hat, f = forms(at, d, mate, sign, cosine, sine, in_d, ROPE, FEATURE, RAW)
            out = tl.sum(hat[:, None] * s, 0)
            if norm is not None:
                out = out / (tl.sum(f * z, 0) + least)
            else:
                out = out * scale
            tl.store(o + (t * HEADS + h) * V_DIM + j, out.to(o.dtype.element_ty), mask=j < V_DIM)
    if k is not None:
        tl.store(place, s, mask=inside)
        if norm is not None:  # into a copy: other programs still read the old sums
            tl.store(new_norm + (row * heads + head) * DIM + d, z, mask=d < held)


def linear_attention(bound, axes, outs):
    """`headrace.ops.linear_attention` on CUDA tensors (or, interpreted, small CPU tensors)."""
    q, k, v, state, norm = (bound[x] for x in ("q", "k", "v", "state", "norm"))
    if axes["B"] * axes["Hkv"] == 0:
        return
    angle = cosines = sines = None
    if bound["inv_freq"] is not None:
        angle = bound["offset"].double()[:, None] * bound["inv_freq"]
        cosines, sines = angle.cos().float(), angle.sin().float()
    fresh = None if norm is None else norm.clone()
    at, wide = (bound["indptr"], bound["rows"]), power_of_two(axes["D"])
    at += (bound["log_decay"], cosines, sines)
    of_q, of_k, of_v = ((0, 0) if x is None else x.stride()[:2] for x in (q, k, v))
    half, many = 0 if angle is None else angle.shape[1], axes["T"] >= LONG and wide <= 256
    longest = LONG if many else 2**30  # a state of more rows leaves no room for chunks
    end = (bound["count"], outs[0])
    strides = (*of_q, *of_k, *of_v, half, bound["scale"], bound["eps"])
    tokens, states = axes["T"], axes["S"]
    sizes = {"DIM": axes["D"], "V_DIM": axes["Dv"]}
    forms = {"FEATURE": bound["feature"], "RAW": bound["raw"], "BD": wide, **sizes}
    heads = {"HEADS": axes["H"], "GROUP": axes["H"] // axes["Hkv"]}
    more = {"num_warps": 4, "num_stages": 1, **FUSION}
    with on_device("linear_attention", q):
        if many:
            # A turned row of 128 holds its other half besides.
            strip = 64 if wide <= (128 if angle is None else 64) else 32
            tiles = {"BS": SEGMENT, "BT": 32, "BV": strip}
            segments = pieces(axes["T"], axes["B"], SEGMENT)
            grid = (segments, axes["Hkv"], triton.cdiv(axes["Dv"], tiles["BV"]))
            sums = None
            if k is not None and axes["T"] > SEGMENT:
                sums = state.new_empty(segments, axes["Hkv"], axes["D"], axes["Dv"] + 1)
                linear_attention_segment_kernel[grid](
                    k, v, sums, at[0], *at[2:], axes["B"], tokens, LONG, *of_k, *of_v, half,
                    HEADS=axes["Hkv"], **forms, **tiles, **more,
                )  # fmt: skip
                cells = triton.cdiv(axes["D"] * (axes["Dv"] + 1), 1024)
                linear_attention_scan_kernel[(cells, axes["B"], axes["Hkv"])](
                    state, norm, sums, *at[:3], tokens, states, LONG, HEADS=axes["Hkv"],
                    BS=SEGMENT, BLOCK=1024, **sizes, **more,
                )  # fmt: skip
            strips = (*grid[:2], triton.cdiv(axes["Dv"], STRIP))
            # Rows of 256, or turned ones of 128, take more registers than four warps have.
            warps = {"num_warps": 8 if wide > (128 if angle is None else 64) else 4}
            linear_attention_chunk_kernel[strips](
                q, k, v, state, norm, fresh, sums, *at, *end, axes["B"], tokens, states, LONG,
                *strides, BC=SLAB, **heads, **forms, **tiles | {"BV": STRIP}, **more | warps,
            )  # fmt: skip
        linear_attention_kernel[(axes["Hkv"], axes["B"], triton.cdiv(axes["Dv"], 32))](
            q, k, v, state, norm, fresh, *at, *end, tokens, states, longest, *strides, BV=32,
            **heads, **forms, **more,
        )  # fmt: skip
    if k is not None and norm is not None:
        norm.copy_(fresh)
