# SPDX-License-Identifier: Apache-2.0
"""`linear` in Triton: one tile shape for every number of rows, one order over K, no split of K.

The tile shape follows the weight's shape and the dtypes alone, and the kernel is not specialised on
the number of rows, so a row meets the same instructions in the same order whatever comes with it.
Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, low_precision, on_device, product
from headrace.kernels.common.tuned import choice


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x,
    weight,
    bias,
    y,
    rows,
    N,
    K,
    x_row,
    w_row,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LOW: tl.constexpr,
):
    pid = tl.program_id(0)
    # Row blocks of one column block run side by side: its weights are read from memory once.
    row_blocks = tl.cdiv(rows, BM)
    t = (pid % row_blocks).to(tl.int64) * BM + tl.arange(0, BM)
    n = (pid // row_blocks).to(tl.int64) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        i = start + depth
        a = tl.load(
            x + t[:, None] * x_row + i[None, :],
            mask=(t[:, None] < rows) & (i[None, :] < K),
            other=0.0,
        )
        b = tl.load(
            weight + n[None, :] * w_row + i[:, None],
            mask=(n[None, :] < N) & (i[:, None] < K),
            other=0.0,
        )
        acc += product(a, b, LOW)
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    mask = (t[:, None] < rows) & (n[None, :] < N)
    tl.store(y + t[:, None] * N + n[None, :], acc.to(y.dtype.element_ty), mask=mask)


def linear(bound, axes, outs):
    """`headrace.ops.linear` on CUDA tensors (or, interpreted, small CPU tensors)."""
    x, weight, bias, (y,) = bound["x"], bound["weight"], bound["bias"], outs
    rows, n, k = axes["T"], axes["N"], axes["K"]
    if y.numel() == 0:
        return
    low = low_precision(x, weight)
    default = dict(rows=32, columns=32, depth=32, warps=4, stages=2)
    if low:
        default = dict(rows=64, columns=64 if n > 8192 else 32, depth=64, warps=4, stages=4)
    made = choice("linear", f"{n} {k} {'16-bit' if low else 'fp32'}", x, default)
    block_m, block_n = made["rows"], made["columns"]
    with on_device("linear", x):
        linear_kernel[(triton.cdiv(rows, block_m) * triton.cdiv(n, block_n),)](
            x,
            weight,
            bias,
            y,
            rows,
            n,
            k,
            x.stride(0) if rows > 1 else k,
            weight.stride(0),
            BM=block_m,
            BN=block_n,
            BK=made["depth"],
            HAS_BIAS=bias is not None,
            LOW=low,
            num_warps=made["warps"],
            num_stages=made["stages"],
            **FUSION,
        )
