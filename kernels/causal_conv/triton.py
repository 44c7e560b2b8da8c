# SPDX-License-Identifier: Apache-2.0
"""`causal_conv` in Triton: outputs by blocks of channels and tokens, then the states.

The states are read by the first launch and written by the second, so that no program of the first
can meet one that is already new. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device
from headrace.kernels.common.triton_bounds import row_of, span


@triton.jit
def seen_at(x, state, begin, at, c, mask, channels, x_row, row, held, KEPT: tl.constexpr):
    """Input number `at` of a stream whose first is 0; those below come from the state, of which
    the first `held` channels are there."""
    new = tl.load(x + (begin + at) * x_row + c, mask=mask & (at >= 0), other=0.0)
    place = state + (row * channels + c) * KEPT + KEPT + at
    old = tl.load(place, mask=mask & (at < 0) & (c < held), other=0.0)
    return tl.where(at >= 0, new, old)


@triton.jit(do_not_specialize=["tokens", "states"])
def causal_conv_kernel(
    x, weight, bias, state, indptr, rows, y, tokens, states, channels, x_row,
    TAPS: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1)
    begin, count = span(indptr, b, tokens)
    begin = begin.to(tl.int64)
    row, _, held = row_of(rows, b, states, channels)
    c = tl.program_id(0) * BC + tl.arange(0, BC)[None, :]
    for first in range(tl.program_id(2) * BT, count, BT * tl.num_programs(2)):
        t = first + tl.arange(0, BT)[:, None]
        mask = (t < count) & (c < channels)
        total = tl.zeros([BT, BC], tl.float32)
        if bias is not None:
            total += tl.load(bias + c, mask=c < channels, other=0.0)
        for j in tl.static_range(TAPS):
            at = t - (TAPS - 1 - j)
            value = seen_at(x, state, begin, at, c, mask, channels, x_row, row, held, TAPS - 1)
            total += value.to(tl.float32) * tl.load(
                weight + c * TAPS + j, mask=c < channels, other=0.0
            )
        if SILU:
            total = total / (1.0 + tl.exp(-total))
        tl.store(y + (begin + t) * channels + c, total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "states"])
def state_kernel(
    x, state, indptr, rows, tokens, states, channels, x_row, KEPT: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    b = tl.program_id(1)
    begin, count = span(indptr, b, tokens)
    begin = begin.to(tl.int64)
    row, _, held = row_of(rows, b, states, channels)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    mask = c < channels
    for j in tl.static_range(KEPT):  # upwards: what is read lies above what is written
        at = count - KEPT + j + tl.zeros([BC], tl.int64)
        value = seen_at(x, state, begin, at, c, mask, channels, x_row, row, held, KEPT)
        tl.store(state + (row * channels + c) * KEPT + j, value, mask=c < held)


def causal_conv(bound, axes, outs):
    """`headrace.ops.causal_conv` on CUDA tensors (or, interpreted, small CPU tensors)."""
    x, state, (y,) = bound["x"], bound["state"], outs
    streams, channels, taps = axes["B"], axes["C"], axes["L"] + 1
    if streams * channels == 0:
        return
    block, wide = 16, 64
    strips = triton.cdiv(channels, wide)
    share = min(max(1, triton.cdiv(axes["T"], block * streams)), 1024)
    sizes = axes["T"], axes["S"], channels, x.stride(0)
    at = bound["indptr"], bound["rows"]
    with on_device("causal_conv", x):
        causal_conv_kernel[(strips, streams, share)](
            x, bound["weight"], bound["bias"], state, *at, y, *sizes,
            TAPS=taps, SILU=bound["silu"], BT=block, BC=wide, num_warps=4, **FUSION,
        )  # fmt: skip
        if taps > 1:
            state_kernel[(strips, streams)](
                x, state, *at, *sizes, KEPT=taps - 1, BC=wide, num_warps=2, **FUSION
            )
