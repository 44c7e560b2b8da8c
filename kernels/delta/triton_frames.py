# SPDX-License-Identifier: Apache-2.0
"""`frame_delta_rule` in Triton: matrix units over the tokens of a frame, programs over columns.

A program owns a strip of one state's columns, so there are V / 32 times as many as heads and
streams, and nothing is added atomically. The denominators come from a kernel before it, whose
programs own a whole row of norm. State and differences stay fp32; where the rows have 16 bits,
which tf32 holds exactly, a product is two tf32 products over the halves of the other operand.
Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, low_precision, on_device, power_of_two
from headrace.kernels.common.triton_bounds import row_of, span

# Of a thread: where the assembler is not told, it would rather spill than take a few more.
REGISTERS = 96


@triton.jit
def halves(a, b, LOW: tl.constexpr):
    """a @ b to fp32's precision; with LOW the elements of a came from 16 bits."""
    a = a.to(tl.float32)
    if LOW:
        high = (b.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        low = tl.dot(a, b - high, input_precision="tf32")
        return tl.dot(a, high, low, input_precision="tf32")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit(do_not_specialize=["tokens", "frame_count", "states"])
def frame_norms_kernel(
    q, k, beta, log_decay, norm, divisors, frames, indptr, rows, tokens, frame_count, states,
    q_row, q_head, k_row, k_head, eps,
    V_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, UPDATE: tl.constexpr,
    BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    b = tl.program_id(1)
    own = head // GROUP
    d = tl.arange(0, BK)
    in_d = d < DIM
    row, _, held = row_of(rows, b, states, DIM)
    place = norm + (row * V_HEADS + head) * DIM + d
    z = tl.load(place, mask=d < held, other=0.0)
    first, count = span(indptr, b, frame_count)
    for i in range(0, count):
        f = (first + i).to(tl.int64)
        begin, size = span(frames, f, tokens)
        if log_decay is not None:
            z = z * tl.exp(tl.load(log_decay + f * V_HEADS + head))
        found = z
        for start in range(0, size, BT):
            i_t = start + tl.arange(0, BT)
            t, in_t = (begin + i_t).to(tl.int64), i_t < size
            inside = in_t[:, None] & in_d[None, :]
            x = tl.load(k + t[:, None] * k_row + own * k_head + d[None, :], mask=inside, other=0.0)
            x = x.to(tl.float32)
            step = tl.load(beta + t * V_HEADS + head, mask=in_t, other=0.0)
            step = step * (1.0 - tl.sum(x * found[None, :], 1))
            z += tl.sum(x * step[:, None], 0)
        for start in range(0, size, BT):
            i_t = start + tl.arange(0, BT)
            t, in_t = (begin + i_t).to(tl.int64), i_t < size
            inside = in_t[:, None] & in_d[None, :]
            x = tl.load(q + t[:, None] * q_row + own * q_head + d[None, :], mask=inside, other=0.0)
            under = tl.sum(x.to(tl.float32) * z[None, :], 1) + eps
            tl.store(divisors + t * V_HEADS + head, under, mask=in_t)
    if UPDATE:
        tl.store(place, z, mask=d < held)


@triton.jit(do_not_specialize=["tokens", "frame_count", "states"])
def frame_strip_kernel(
    q_hat, k_hat, v, beta, log_decay, state, divisors, o, frames, indptr, rows,
    tokens, frame_count, states,
    q_row, q_head, k_row, k_head, v_row, v_head,
    V_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    UPDATE: tl.constexpr, LOW: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    b = tl.program_id(1)
    own = head // GROUP
    d = tl.arange(0, BK)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    in_d, in_j = d < DIM, j < V_DIM
    row, _, held = row_of(rows, b, states, DIM)
    owned = (d < held)[:, None] & in_j[None, :]
    place = (row * V_HEADS + head) * DIM
    place = state + (place + d[:, None]) * V_DIM + j[None, :]
    s = tl.load(place, mask=owned, other=0.0)
    first, count = span(indptr, b, frame_count)
    for i in range(0, count):
        f = (first + i).to(tl.int64)
        begin, size = span(frames, f, tokens)
        if log_decay is not None:
            s = s * tl.exp(tl.load(log_decay + f * V_HEADS + head))
        found = s
        for start in range(0, size, BT):
            i_t = start + tl.arange(0, BT)
            t, in_t = (begin + i_t).to(tl.int64), i_t < size
            inside = in_t[:, None] & in_d[None, :]
            x = tl.load(
                k_hat + t[:, None] * k_row + own * k_head + d[None, :], mask=inside, other=0.0
            )
            y = tl.load(
                v + t[:, None] * v_row + head * v_head + j[None, :],
                mask=in_t[:, None] & in_j[None, :],
                other=0.0,
            )
            step = tl.load(beta + t * V_HEADS + head, mask=in_t, other=0.0)
            delta = step[:, None] * (y.to(tl.float32) - halves(x, found, LOW))
            s += halves(tl.trans(x), delta, LOW)
        for start in range(0, size, BT):
            i_t = start + tl.arange(0, BT)
            t, in_t = (begin + i_t).to(tl.int64), i_t < size
            inside = in_t[:, None] & in_d[None, :]
            x = tl.load(
                q_hat + t[:, None] * q_row + own * q_head + d[None, :], mask=inside, other=0.0
            )
            under = tl.load(divisors + t * V_HEADS + head, mask=in_t, other=1.0)
            y = halves(x, s, LOW) / under[:, None]
            at = o + (t[:, None] * V_HEADS + head) * V_DIM + j[None, :]
            tl.store(at, y.to(o.dtype.element_ty), mask=in_t[:, None] & in_j[None, :])
    if UPDATE:
        tl.store(place, s, mask=owned)


def frame_delta_rule(bound, axes, outs):
    """`headrace.ops.frame_delta_rule` on CUDA tensors (or, interpreted, small CPU tensors)."""
    q, k, v, (o,) = bound["q"], bound["k"], bound["v"], outs
    if axes["B"] * axes["HV"] == 0:
        return
    q_hat, k_hat = (bound[f"{n}_hat"] if bound[f"{n}_hat"] is not None else bound[n] for n in "qk")
    divisors = bound["beta"].new_empty(axes["T"], axes["HV"])
    at = (bound["frames"], bound["indptr"], bound["rows"], axes["T"], axes["F"], axes["S"])
    gates = (bound["beta"], bound["log_decay"])
    heads = {"V_HEADS": axes["HV"], "GROUP": axes["HV"] // axes["H"], "DIM": axes["K"]}
    heads |= {"UPDATE": bound["update"], "BK": power_of_two(axes["K"])}
    low = low_precision(q, k, v)
    options = {"num_warps": 4 if heads["BK"] <= 128 else 8, **FUSION}
    strip, rows = (32 if low and heads["BK"] <= 128 else 16), (32 if low else 16)
    with on_device("frame_delta_rule", q):
        frame_norms_kernel[(axes["HV"], axes["B"])](
            q, k, *gates, bound["norm"], divisors, *at, *q.stride()[:2], *k.stride()[:2],
            bound["eps"], BT=16, maxnreg=REGISTERS, **heads, **options,
        )  # fmt: skip
        frame_strip_kernel[(axes["HV"], axes["B"], triton.cdiv(axes["V"], strip))](
            q_hat, k_hat, v, *gates, bound["state"], divisors, o, *at,
            *q_hat.stride()[:2], *k_hat.stride()[:2], *v.stride()[:2],
            V_DIM=axes["V"], LOW=low, BT=rows, BV=strip, **heads, **options,
        )  # fmt: skip
