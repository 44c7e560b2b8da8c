# SPDX-License-Identifier: Apache-2.0
"""`gated_delta_rule` in Triton: a program owns a strip of the columns of one head's state.

The strip stays in registers while the tokens of the stream pass, so there are (streams x heads x
strips) programs and nothing meets. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device, power_of_two


@triton.jit
def gated_delta_rule_kernel(
    q,
    k,
    v,
    log_decay,
    beta,
    o,
    state,
    indptr,
    rows,
    scale,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    HV: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    BD: tl.constexpr,
    BV: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    head = tl.program_id(0)
    stream = tl.program_id(2)
    d = tl.arange(0, BD)
    n = tl.program_id(1) * BV + tl.arange(0, BV)
    row = tl.load(rows + stream).to(tl.int64)
    mask = (d[:, None] < D) & (n[None, :] < V)
    at = state + ((row * HV + head) * D + d[:, None]) * V + n[None, :]
    s = tl.load(at, mask=mask, other=0.0)
    begin = tl.load(indptr + stream)
    end = tl.load(indptr + stream + 1)
    for t in range(begin, end):
        token = row * 0 + t  # 64 bits
        own = head // GROUP
        key = tl.load(k + token * k_row + own * k_head + d, mask=d < D, other=0.0).to(tl.float32)
        ask = tl.load(q + token * q_row + own * q_head + d, mask=d < D, other=0.0).to(tl.float32)
        if NORMALIZE:
            key = key / tl.sqrt(tl.sum(key * key, 0) + 1e-6)
            ask = ask / tl.sqrt(tl.sum(ask * ask, 0) + 1e-6)
        value = tl.load(v + token * v_row + head * v_head + n, mask=n < V, other=0.0)
        s = s * tl.exp(tl.load(log_decay + token * HV + head))
        found = tl.sum(s * key[:, None], 0)
        delta = tl.load(beta + token * HV + head) * (value.to(tl.float32) - found)
        s = s + key[:, None] * delta[None, :]
        out = scale * tl.sum(s * ask[:, None], 0)
        tl.store(o + (token * HV + head) * V + n, out.to(o.dtype.element_ty), mask=n < V)
    tl.store(at, s, mask=mask)


def gated_delta_rule(bound, axes, outs):
    """`headrace.ops.gated_delta_rule` on CUDA tensors (or, interpreted, small CPU tensors)."""
    q, k, v, (o,) = bound["q"], bound["k"], bound["v"], outs
    if 0 in (axes["T"], axes["B"]):
        return
    columns = 16
    with on_device("gated_delta_rule", q):
        gated_delta_rule_kernel[(axes["HV"], triton.cdiv(axes["V"], columns), axes["B"])](
            q,
            k,
            v,
            bound["log_decay"],
            bound["beta"],
            o,
            bound["state"],
            bound["indptr"],
            bound["rows"],
            bound["scale"],
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            HV=axes["HV"],
            GROUP=axes["HV"] // axes["H"],
            D=axes["D"],
            V=axes["V"],
            BD=power_of_two(axes["D"]),
            BV=columns,
            NORMALIZE=bound["normalize"],
            num_warps=4,
            num_stages=1,
            **FUSION,
        )
