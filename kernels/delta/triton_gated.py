# SPDX-License-Identifier: Apache-2.0
"""`gated_delta_rule` in Triton: a program owns a strip of the columns of one head's state.

The strip stays in registers while the tokens of the stream pass, so there are (streams x heads x
strips) programs and nothing meets. Streams that bring many tokens go in chunks, see triton_chunk.
Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton import FUSION, on_device, power_of_two
from headrace.kernels.common.triton_bounds import row_of, span
from headrace.kernels.common.triton_pieces import pieces

from .triton_chunk import gated_delta_chunk_kernel, gated_delta_solve_kernel

LONG = 24  # tokens that a stream must bring for chunks; a stream's own matter, not its neighbours'
STRIP = 32  # columns of a state that a program owns
# Columns of keys, and rows of the state, that a product takes at once: with more, the three passes
# of tf32 leave no registers.
SLAB, SLAB_OF_SOLVE = 16, 32
# Of a thread, by head size: where the assembler is not told, it would rather spill than take them.
REGISTERS = {128: 64}


@triton.jit(do_not_specialize=["tokens", "states"])
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
    tokens,
    states,
    longest,
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
    begin, size = span(indptr, stream, tokens)
    if size >= longest:
        return
    d = tl.arange(0, BD)
    n = tl.program_id(1) * BV + tl.arange(0, BV)
    row, _, held = row_of(rows, stream, states, D)
    mask = (d[:, None] < held) & (n[None, :] < V)
    at = state + ((row * HV + head) * D + d[:, None]) * V + n[None, :]
    s = tl.load(at, mask=mask, other=0.0)
    for t in range(begin, begin + size):
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
    q, k, v, o = bound["q"], bound["k"], bound["v"], outs[0]
    tokens, streams, states = axes["T"], axes["B"], axes["S"]
    if 0 in (tokens, streams):
        return
    gates, strides = (bound["log_decay"], bound["beta"]), (*q.stride()[:2], *k.stride()[:2])
    ends, scale = (bound["indptr"], bound["rows"]), bound["scale"]
    heads = {"HV": axes["HV"], "GROUP": axes["HV"] // axes["H"], "D": axes["D"]}
    heads |= {"BD": power_of_two(axes["D"]), "NORMALIZE": bound["normalize"]}
    more = {"num_warps": 4, "num_stages": 1, **FUSION}
    with on_device("gated_delta_rule", q):
        if tokens >= LONG:
            # Tokens: twice as many of a key of more bytes would not fit the registers.
            chunk = 16 if heads["BD"] * k.element_size() > 256 else 32
            chunks = pieces(tokens, streams, chunk)
            solved, scores = gates[0].new_empty(2, chunks, axes["HV"], chunk, chunk)
            gated_delta_solve_kernel[(chunks, axes["HV"])](
                q, k, *gates, solved, scores, ends[0], streams, tokens, LONG, scale, *strides,
                BT=chunk, BS=min(SLAB_OF_SOLVE, heads["BD"]), **heads, **more,
            )  # fmt: skip
            gated_delta_chunk_kernel[(axes["HV"], triton.cdiv(axes["V"], STRIP), streams)](
                q, k, v, *gates, solved, scores, o, bound["state"], *ends, tokens, states, LONG,
                scale, *strides, *v.stride()[:2], V=axes["V"], BV=STRIP, BT=chunk, BS=SLAB,
                **heads, **more,
            )  # fmt: skip
        gated_delta_rule_kernel[(axes["HV"], triton.cdiv(axes["V"], 16), streams)](
            q, k, v, *gates, o, bound["state"], *ends, tokens, states, LONG, scale, *strides,
            *v.stride()[:2], V=axes["V"], BV=16, maxnreg=REGISTERS.get(heads["BD"]), **heads,
            **more,
        )  # fmt: skip
