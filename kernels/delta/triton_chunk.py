# SPDX-License-Identifier: Apache-2.0
"""`gated_delta_rule` for long streams in Triton: chunks of tokens as products on matrix units.

What the tokens of a chunk write solves a unit lower triangular system (I + A) W = R, the WY form of
the rule: A holds what a key finds of those before it, R what is new to the state before the chunk.
The inverse and the scores inside a chunk need no state, so all chunks do them at once; then a
program for each strip of columns takes its chunks one after the other. Products are fp32 in three
passes of tf32. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton_pieces import first_piece, stream_of


@triton.jit
def unit_rows(at, mask, NORMALIZE: tl.constexpr):
    """Rows [T, D] in fp32, of length 1 if asked for; 0 outside."""
    x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if NORMALIZE:
        x = x / tl.sqrt(tl.sum(x * x, 1) + 1e-6)[:, None]
    return x


@triton.jit
def decays(log_decay, gate, in_t):
    """Sums of a chunk's log decays up to each token, and of all.

    Below the bound a decay is 0 in fp32 in any case, and differences of sums stay finite.
    """
    g = tl.maximum(tl.load(log_decay + gate, mask=in_t, other=0.0), -110.0)
    return tl.cumsum(g, 0), tl.sum(g, 0)


@triton.jit
def inverse(a, BT: tl.constexpr):
    """(I + a)^-1 of a strictly lower triangular a [T, T].

    Blocks of 16 on the diagonal row after row, all blocks at once: row i is e_i - a_i times those
    above, which is stable where keys repeat and powers of a would not be. What is below the
    blocks, times their inverse, has no fourth power.
    """
    i = tl.arange(0, BT)
    same = (i[:, None] // 16) == (i[None, :] // 16)
    inner = tl.where(same, a, 0.0)
    eye = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    x = eye
    for r in range(1, 16):
        row = ((i % 16) == r)[:, None]
        found = tl.sum(tl.where(row, inner, 0.0), 0)  # one row of each block, columns disjoint
        line = tl.sum(found[:, None] * x, 0)
        x -= tl.where(row & same, line[None, :], 0.0)
    below = tl.dot(x, a - inner, input_precision="tf32x3")
    if BT > 32:
        twice = tl.dot(below, below, input_precision="tf32x3")
        x += tl.dot(twice, x, input_precision="tf32x3")
    return x - tl.dot(below, x, input_precision="tf32x3")


@triton.jit
def gated_delta_solve_kernel(
    q, k, log_decay, beta, solved, scores, indptr, streams, longest, scale,
    q_row, q_head, k_row, k_head,
    HV: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0)
    head = tl.program_id(1)
    own = head // GROUP
    b = stream_of(indptr, piece, streams, BT)
    begin = tl.load(indptr + b)
    size = tl.load(indptr + b + 1) - begin
    start = (piece - first_piece(indptr, b, BT)) * BT
    if size < longest:
        return
    if start >= size:
        return
    d, i = tl.arange(0, BD), tl.arange(0, BT)
    t, in_t = (begin + start + i).to(tl.int64), start + i < size
    mask = in_t[:, None] & (d < D)[None, :]
    gate = t * HV + head
    g, _ = decays(log_decay, gate, in_t)
    step = tl.load(beta + gate, mask=in_t, other=0.0)
    seen = i[:, None] >= i[None, :]
    decay = tl.where(seen, tl.exp(tl.where(seen, g[:, None] - g[None, :], 0.0)), 0.0)
    key = unit_rows(k + t[:, None] * k_row + own * k_head + d[None, :], mask, NORMALIZE)
    ask = unit_rows(q + t[:, None] * q_row + own * q_head + d[None, :], mask, NORMALIZE)
    place = (piece.to(tl.int64) * HV + head) * BT * BT + i[:, None] * BT + i[None, :]
    found = tl.dot(ask, tl.trans(key), input_precision="tf32x3") * decay
    tl.store(scores + place, scale * found)
    found = tl.dot(key, tl.trans(key), input_precision="tf32x3") * decay
    found = tl.where(i[:, None] > i[None, :], found * step[:, None], 0.0)
    tl.store(solved + place, inverse(found, BT))


@triton.jit
def gated_delta_chunk_kernel(
    q, k, v, log_decay, beta, solved, scores, o, state, indptr, rows, longest, scale,
    q_row, q_head, k_row, k_head, v_row, v_head,
    HV: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, V: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, BT: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    stream = tl.program_id(2)
    own = head // GROUP
    begin = tl.load(indptr + stream).to(tl.int64)
    size = (tl.load(indptr + stream + 1) - begin).to(tl.int32)
    if size < longest:
        return
    d, i = tl.arange(0, BD), tl.arange(0, BT)
    n = tl.program_id(1) * BV + tl.arange(0, BV)
    in_d, in_n = d < D, n < V
    row = tl.load(rows + stream).to(tl.int64)
    owned = in_d[:, None] & in_n[None, :]
    place = state + ((row * HV + head) * D + d[:, None]) * V + n[None, :]
    s = tl.load(place, mask=owned, other=0.0)
    piece = first_piece(indptr, stream, BT).to(tl.int64)
    square = i[:, None] * BT + i[None, :]
    for start in range(0, size, BT):
        t, in_t = begin + start + i, start + i < size
        mask = in_t[:, None] & in_d[None, :]
        gate = t * HV + head
        g, last = decays(log_decay, gate, in_t)
        step = tl.load(beta + gate, mask=in_t, other=0.0)
        at = ((piece + start // BT) * HV + head) * BT * BT + square
        key = unit_rows(k + t[:, None] * k_row + own * k_head + d[None, :], mask, NORMALIZE)
        held = tl.dot(key, s, input_precision="tf32x3") * tl.exp(g)[:, None]
        value = tl.load(
            v + t[:, None] * v_row + head * v_head + n[None, :],
            mask=in_t[:, None] & in_n[None, :],
            other=0.0,
        )
        write = step[:, None] * (value.to(tl.float32) - held)
        write = tl.dot(tl.load(solved + at), write, input_precision="tf32x3")
        ask = unit_rows(q + t[:, None] * q_row + own * q_head + d[None, :], mask, NORMALIZE)
        out = tl.dot(ask, s, input_precision="tf32x3") * (scale * tl.exp(g))[:, None]
        out += tl.dot(tl.load(scores + at), write, input_precision="tf32x3")
        to = o + (t[:, None] * HV + head) * V + n[None, :]
        tl.store(to, out.to(o.dtype.element_ty), mask=in_t[:, None] & in_n[None, :])
        key = key * tl.exp(last - g)[:, None]
        s = s * tl.exp(last) + tl.dot(tl.trans(key), write, input_precision="tf32x3")
    tl.store(place, s, mask=owned)
