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
from headrace.kernels.common.triton_bounds import row_of, span
from headrace.kernels.common.triton_pieces import first_piece, stream_of


@triton.jit
def slab_of(base, t, row, d, in_t, D: tl.constexpr):
    """Columns d of rows t [T, B] in fp32; 0 outside."""
    mask = in_t[:, None] & (d < D)[None, :]
    return tl.load(base + t[:, None] * row + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def unit(squares, NORMALIZE: tl.constexpr):
    """By what rows of these sums of squares become of length 1, if asked for."""
    by = squares * 0.0 + 1.0
    if NORMALIZE:
        by = 1.0 / tl.sqrt(squares + 1e-6)
    return by


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


@triton.jit(do_not_specialize=["tokens"])
def gated_delta_solve_kernel(
    q, k, log_decay, beta, solved, scores, indptr, streams, tokens, longest, scale,
    q_row, q_head, k_row, k_head,
    HV: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr,
    BT: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0)
    head = tl.program_id(1)
    own = head // GROUP
    b = stream_of(indptr, piece, streams, tokens, BT)
    begin, size = span(indptr, b, tokens)
    start = (piece - first_piece(indptr, b, tokens, BT)) * BT
    if size < longest:
        return
    if (start < 0) | (start >= size):
        return
    i = tl.arange(0, BT)
    t, in_t = (begin + start + i).to(tl.int64), start + i < size
    gate = t * HV + head
    g, _ = decays(log_decay, gate, in_t)
    step = tl.load(beta + gate, mask=in_t, other=0.0)
    seen = i[:, None] >= i[None, :]
    decay = tl.where(seen, tl.exp(tl.where(seen, g[:, None] - g[None, :], 0.0)), 0.0)
    asked = tl.zeros([BT, BT], tl.float32)
    found = tl.zeros([BT, BT], tl.float32)
    k_squares = tl.zeros([BT], tl.float32)
    q_squares = tl.zeros([BT], tl.float32)
    for d0 in range(0, BD, BS):
        d = d0 + tl.arange(0, BS)
        key = slab_of(k + own * k_head, t, k_row, d, in_t, D)
        ask = slab_of(q + own * q_head, t, q_row, d, in_t, D)
        k_squares += tl.sum(key * key, 1)
        q_squares += tl.sum(ask * ask, 1)
        asked += tl.dot(ask, tl.trans(key), input_precision="tf32x3")
        found += tl.dot(key, tl.trans(key), input_precision="tf32x3")
    k_unit, q_unit = unit(k_squares, NORMALIZE), unit(q_squares, NORMALIZE)
    decay = decay * k_unit[None, :]
    place = (piece.to(tl.int64) * HV + head) * BT * BT + i[:, None] * BT + i[None, :]
    tl.store(scores + place, asked * decay * (scale * q_unit)[:, None])
    found = tl.where(i[:, None] > i[None, :], found * decay * (step * k_unit)[:, None], 0.0)
    tl.store(solved + place, inverse(found, BT))


@triton.jit(do_not_specialize=["tokens", "states"])
def gated_delta_chunk_kernel(
    q, k, v, log_decay, beta, solved, scores, o, state, indptr, rows, tokens, states, longest,
    scale, q_row, q_head, k_row, k_head, v_row, v_head,
    HV: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, V: tl.constexpr, BD: tl.constexpr,
    BS: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    stream = tl.program_id(2)
    own = head // GROUP
    begin, size = span(indptr, stream, tokens)
    begin = begin.to(tl.int64)
    row, there, _ = row_of(rows, stream, states, D)
    if (size < longest) | (there == 0):  # no row: nothing at all, as registers are few
        return
    i, of_slab = tl.arange(0, BT), tl.arange(0, BS)
    n = tl.program_id(1) * BV + tl.arange(0, BV)
    in_n = n < V
    place = state + (row * HV + head) * D * V + n[None, :]
    s = ()  # slabs of rows of the state
    for j in tl.static_range(BD // BS):
        d = j * BS + of_slab[:, None]
        fits = (d < D) & in_n[None, :]
        s += (tl.load(place + d * V, mask=fits, other=0.0),)  # type: ignore[assignment]
    piece = first_piece(indptr, stream, tokens, BT).to(tl.int64)
    square = i[:, None] * BT + i[None, :]
    for start in range(0, size, BT):
        t, in_t = begin + start + i, start + i < size
        gate = t * HV + head
        g, last = decays(log_decay, gate, in_t)
        step = tl.load(beta + gate, mask=in_t, other=0.0)
        at = ((piece + start // BT) * HV + head) * BT * BT + square
        held = tl.zeros([BT, BV], tl.float32)
        out = tl.zeros([BT, BV], tl.float32)
        k_squares = tl.zeros([BT], tl.float32)
        q_squares = tl.zeros([BT], tl.float32)
        for j in tl.static_range(BD // BS):
            key = slab_of(k + own * k_head, t, k_row, j * BS + of_slab, in_t, D)
            ask = slab_of(q + own * q_head, t, q_row, j * BS + of_slab, in_t, D)
            held += tl.dot(key, s[j], input_precision="tf32x3")
            out += tl.dot(ask, s[j], input_precision="tf32x3")
            k_squares += tl.sum(key * key, 1)
            q_squares += tl.sum(ask * ask, 1)
        k_unit = unit(k_squares, NORMALIZE)
        held *= (k_unit * tl.exp(g))[:, None]
        out *= (unit(q_squares, NORMALIZE) * scale * tl.exp(g))[:, None]
        inside = in_t[:, None] & in_n[None, :]
        value = tl.load(v + t[:, None] * v_row + head * v_head + n[None, :], mask=inside, other=0.0)
        write = step[:, None] * (value.to(tl.float32) - held)
        write = tl.dot(tl.load(solved + at), write, input_precision="tf32x3")
        out += tl.dot(tl.load(scores + at), write, input_precision="tf32x3")
        to = o + (t[:, None] * HV + head) * V + n[None, :]
        tl.store(to, out.to(o.dtype.element_ty), mask=inside)
        write *= (k_unit * tl.exp(last - g))[:, None]
        after = ()
        for j in tl.static_range(BD // BS):
            key = slab_of(k + own * k_head, t, k_row, j * BS + of_slab, in_t, D)
            added = tl.dot(tl.trans(key), write, input_precision="tf32x3")
            after += (s[j] * tl.exp(last) + added,)  # type: ignore[assignment]
        s = after
    for j in tl.static_range(BD // BS):
        d = j * BS + of_slab[:, None]
        tl.store(place + d * V, s[j], mask=(d < D) & in_n[None, :])
