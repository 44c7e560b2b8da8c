# SPDX-License-Identifier: Apache-2.0
"""`linear_attention` for long streams in Triton: chunks of tokens as products on matrix units.

Inside a chunk a token meets those before it as masked scores, and all that came before the chunk as
the state. Streams are cut into segments, so that a single long one keeps a whole GPU busy: first
what each segment adds, then the state before each by a scan, then all segments at once. Products
are fp32 in three passes of tf32. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from headrace.kernels.common.triton_bounds import row_of, span
from headrace.kernels.common.triton_pieces import first_piece, stream_of


@triton.jit
def phi(x, FEATURE: tl.constexpr):
    if FEATURE == 1:
        x = tl.maximum(x, 0.0)
    if FEATURE == 2:
        x = tl.where(x > 0, x + 1.0, tl.exp(tl.minimum(x, 0.0)))
    return x


@triton.jit
def form_rows(
    base, row, t, d, mate, sign, cosine, sine, mask, HAS: tl.constexpr, FEATURE: tl.constexpr,
    RAW: tl.constexpr,
):  # fmt: skip
    """The numerator's form of rows t [T, D], and phi of the rows as they came; 0 outside."""
    at = base + t[:, None] * row
    x = tl.load(at + d[None, :], mask=mask, other=0.0).to(tl.float32)
    f = phi(x, FEATURE)
    hat = f
    if RAW:
        hat = x
    if HAS:
        other = tl.load(at + mate[None, :], mask=mask, other=0.0).to(tl.float32)
        if not RAW:
            other = phi(other, FEATURE)
        hat = hat * cosine + sign[None, :] * other * sine
    return tl.where(mask, hat, 0.0), tl.where(mask, f, 0.0)


@triton.jit
def turn(d, half):
    """Of each dimension: its mate, the sign of the mate's sine, the frequency, and if it turns."""
    turned = d < 2 * half
    mate = tl.where(d < half, d + half, tl.where(turned, d - half, d))
    sign = tl.where(d < half, -1.0, tl.where(turned, 1.0, 0.0))
    return mate, sign, tl.where(d < half, d, d - half), turned


@triton.jit
def angles(cosines, sines, t, mask, freq, turned, half, BT: tl.constexpr, BD: tl.constexpr):
    """cos and sin of rows t [T, D]; 1 and 0 where nothing turns."""
    cosine = tl.full([BT, BD], 1.0, tl.float32)
    sine = tl.zeros([BT, BD], tl.float32)
    if cosines is not None:
        at = t[:, None] * half + freq[None, :]
        cosine = tl.load(cosines + at, mask=mask & turned[None, :], other=1.0)
        sine = tl.load(sines + at, mask=mask & turned[None, :], other=0.0)
    return cosine, sine


@triton.jit
def decay_of(log_decay, head):
    """A head's log decay; below the bound it is 0 in fp32 in any case, and products are finite."""
    by = tl.full([], 0.0, tl.float32)
    if log_decay is not None:
        by = tl.maximum(tl.load(log_decay + head), -1000.0)
    return by


@triton.jit
def add_chunk(s, z, hat, f, value, in_t, i, n, by):
    """State and norm after a chunk of n tokens, of which each is decayed by those after it."""
    left = tl.where(in_t, tl.exp(by * tl.maximum(n - 1 - i, 0).to(tl.float32)), 0.0)
    total = tl.exp(by * n)
    s = s * total + tl.dot(tl.trans(hat * left[:, None]), value, input_precision="tf32x3")
    return s, z * total + tl.sum(f * left[:, None], 0)


@triton.jit(do_not_specialize=["tokens"])
def linear_attention_segment_kernel(
    k, v, sums, indptr, log_decay, cosines, sines, streams, tokens, longest,
    k_row, k_head, v_row, v_head, half,
    HEADS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr, FEATURE: tl.constexpr,
    RAW: tl.constexpr, BS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What a segment adds, for the one after it: [D, Dv] and then the norm's [D]."""
    piece = tl.program_id(0)
    head = tl.program_id(1)
    b = stream_of(indptr, piece, streams, tokens, BS)
    begin, size = span(indptr, b, tokens)
    first = (piece - first_piece(indptr, b, tokens, BS)) * BS
    if size < longest:
        return
    if (first < 0) | (first + BS >= size):  # nothing comes after it
        return
    d, i = tl.arange(0, BD), tl.arange(0, BT)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    in_d, in_j = d < DIM, j < V_DIM
    mate, sign, freq, turned = turn(d, half)
    by = decay_of(log_decay, head)
    s = tl.zeros([BD, BV], tl.float32)
    z = tl.zeros([BD], tl.float32)
    for start in range(0, BS, BT):
        t, in_t = (begin + first + start + i).to(tl.int64), start + i < BS
        mask = in_t[:, None] & in_d[None, :]
        cosine, sine = angles(cosines, sines, t, mask, freq, turned, half, BT, BD)
        hat, f = form_rows(
            k + head * k_head, k_row, t, d, mate, sign, cosine, sine, mask, cosines is not None,
            FEATURE, RAW,
        )  # fmt: skip
        at = v + t[:, None] * v_row + head * v_head + j[None, :]
        value = tl.load(at, mask=in_t[:, None] & in_j[None, :], other=0.0).to(tl.float32)
        s, z = add_chunk(s, z, hat, f, value, in_t, i, BT, by)
    place = sums + ((piece + 1).to(tl.int64) * HEADS + head) * DIM * (V_DIM + 1)
    at = place + d[:, None] * V_DIM + j[None, :]
    tl.store(at, s, mask=in_d[:, None] & in_j[None, :])
    tl.store(place + DIM * V_DIM + d, z, mask=in_d & (d * 0 + tl.program_id(2) == 0))


@triton.jit(do_not_specialize=["tokens", "states"])
def linear_attention_scan_kernel(
    state, norm, sums, indptr, rows, log_decay, tokens, states, longest,
    HEADS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr, BS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of segments become the state and norm before each, where there are several."""
    b = tl.program_id(1)
    head = tl.program_id(2)
    _, size = span(indptr, b, tokens)
    if size < longest:
        return
    if size <= BS:
        return
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    of_state, inside = e < DIM * V_DIM, e < DIM * (V_DIM + 1)
    row, _, held = row_of(rows, b, states, DIM * (V_DIM + 1))
    row = row * HEADS + head
    x = tl.load(state + row * DIM * V_DIM + e, mask=of_state & (e < held), other=0.0)
    if norm is not None:
        of_norm = (e < held) & (e >= DIM * V_DIM)
        x += tl.load(norm + row * DIM + (e - DIM * V_DIM), mask=of_norm, other=0.0)
    total = tl.exp(decay_of(log_decay, head) * BS)
    piece = first_piece(indptr, b, tokens, BS).to(tl.int64)
    place = sums + (piece * HEADS + head) * DIM * (V_DIM + 1) + e
    tl.store(place, x, mask=inside)
    for _ in range(BS, size, BS):
        place += HEADS * DIM * (V_DIM + 1)
        x = x * total + tl.load(place, mask=inside, other=0.0)
        tl.store(place, x, mask=inside)


@triton.jit(do_not_specialize=["tokens", "states"])
def linear_attention_chunk_kernel(
    q, k, v, state, norm, new_norm, sums, indptr, rows, log_decay, cosines, sines, count, o,
    streams, tokens, states, longest, q_row, q_head, k_row, k_head, v_row, v_head, half, scale, eps,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    FEATURE: tl.constexpr, RAW: tl.constexpr, BS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    BC: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A segment. Its state stays in memory, in place, and passes by BC rows at a time: in registers
    it would leave none for the products."""
    piece = tl.program_id(0)
    head = tl.program_id(1)
    b = stream_of(indptr, piece, streams, tokens, BS)
    begin, size = span(indptr, b, tokens)
    first = (piece - first_piece(indptr, b, tokens, BS)) * BS
    if size < longest:
        return
    if (first < 0) | (first >= size):
        return
    heads: tl.constexpr = HEADS // GROUP
    all_d, of_slab, i = tl.arange(0, BD), tl.arange(0, BC), tl.arange(0, BT)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    in_d, in_j = all_d < DIM, j < V_DIM
    row, there, _ = row_of(rows, b, states, DIM)
    if there == 0:  # nothing at all, as registers are few
        return
    place = state + (row * heads + head) * DIM * V_DIM
    home = place
    z = tl.zeros([BD], tl.float32)
    several = size > BS
    if norm is not None:
        z = tl.load(norm + (row * heads + head) * DIM + all_d, mask=in_d, other=0.0)
    if sums is not None:  # the state before this segment, which no other program reads
        z = tl.where(several, 0.0, z)
        before = sums + (piece.to(tl.int64) * heads + head) * DIM * (V_DIM + 1)
        home = tl.where(several, before, place)
        held = all_d < tl.where(several, DIM, 0)
        z += tl.load(before + DIM * V_DIM + all_d, mask=held, other=0.0)
    least = eps
    if count is not None:
        least = eps * tl.load(count + row).to(tl.float32)
    by = decay_of(log_decay, head)
    ROPE: tl.constexpr = cosines is not None
    SAME: tl.constexpr = (not ROPE) and ((not RAW) or FEATURE == 0)  # both forms of a row
    age = (i[:, None] - i[None, :]).to(tl.float32)
    decay = tl.where(age >= 0, tl.exp(by * tl.maximum(age, 0.0)), 0.0)
    since = tl.exp(by * (i + 1).to(tl.float32))
    end = tl.minimum(first + BS, size)
    for start in range(first, end, BT):
        t, in_t = (begin + start + i).to(tl.int64), start + i < end
        inside = in_t[:, None] & in_j[None, :]
        whole = in_t[:, None] & in_d[None, :]
        if k is not None:
            at = v + t[:, None] * v_row + head * v_head + j[None, :]
            value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        for g in range(GROUP):
            h = head * GROUP + g
            out = tl.zeros([BT, BV], tl.float32)
            scores = tl.zeros([BT, BT], tl.float32)
            plain = tl.zeros([BT, BT], tl.float32)
            for c in range(0, BD, BC):
                d = c + of_slab
                mask = in_t[:, None] & (d < DIM)[None, :]
                mate, sign, freq, turned = turn(d, half)
                cosine, sine = angles(cosines, sines, t, mask, freq, turned, half, BT, BC)
                ask, ask_f = form_rows(
                    q + h * q_head, q_row, t, d, mate, sign, cosine, sine, mask, ROPE, FEATURE, RAW
                )
                owned = (d < DIM)[:, None] & in_j[None, :]
                s = tl.load(home + d[:, None] * V_DIM + j[None, :], mask=owned, other=0.0)
                out += tl.dot(ask, s, input_precision="tf32x3")
                if k is not None:
                    hat, f = form_rows(
                        k + head * k_head, k_row, t, d, mate, sign, cosine, sine, mask, ROPE,
                        FEATURE, RAW,
                    )  # fmt: skip
                    scores += tl.dot(ask, tl.trans(hat), input_precision="tf32x3")
                    if norm is not None and not SAME:
                        plain += tl.dot(ask_f, tl.trans(f), input_precision="tf32x3")
            if k is not None:
                scores *= decay
                out = out * since[:, None] + tl.dot(scores, value, input_precision="tf32x3")
            if norm is not None:
                from_q = q + h * q_head + t[:, None] * q_row + all_d[None, :]
                x = tl.load(from_q, mask=whole, other=0.0)
                under = tl.sum(phi(x.to(tl.float32), FEATURE) * z[None, :], 1)
                if k is not None:
                    if not SAME:
                        scores = plain * decay
                    under = under * since + tl.sum(scores, 1)
                out = out / tl.where(in_t, under + least, 1.0)[:, None]
            else:
                out = out * scale
            at = o + (t[:, None] * HEADS + h) * V_DIM + j[None, :]
            tl.store(at, out.to(o.dtype.element_ty), mask=inside)
        if k is not None:
            n = tl.minimum(end - start, BT)
            left = tl.where(in_t, tl.exp(by * tl.maximum(n - 1 - i, 0).to(tl.float32)), 0.0)
            total = tl.exp(by * n)
            tl.debug_barrier()  # other threads have read what is written now
            for c in range(0, BD, BC):
                d = c + of_slab
                mask = in_t[:, None] & (d < DIM)[None, :]
                mate, sign, freq, turned = turn(d, half)
                cosine, sine = angles(cosines, sines, t, mask, freq, turned, half, BT, BC)
                hat, f = form_rows(
                    k + head * k_head, k_row, t, d, mate, sign, cosine, sine, mask, ROPE, FEATURE,
                    RAW,
                )  # fmt: skip
                owned = (d < DIM)[:, None] & in_j[None, :]
                spot = home + d[:, None] * V_DIM + j[None, :]
                s = tl.load(spot, mask=owned, other=0.0) * total
                s += tl.dot(tl.trans(hat * left[:, None]), value, input_precision="tf32x3")
                tl.store(spot, s, mask=owned)
            if norm is not None:
                from_k = k + head * k_head + t[:, None] * k_row + all_d[None, :]
                x = tl.load(from_k, mask=whole, other=0.0)
                f = tl.where(whole, phi(x.to(tl.float32), FEATURE), 0.0)
                z = z * total + tl.sum(f * left[:, None], 0)
            tl.debug_barrier()
    if k is not None:
        if several & (end == size):
            for c in range(0, BD, BC):
                d = c + of_slab
                owned = (d < DIM)[:, None] & in_j[None, :]
                cell = d[:, None] * V_DIM + j[None, :]
                tl.store(place + cell, tl.load(home + cell, mask=owned, other=0.0), mask=owned)
        if norm is not None:  # into a copy: other programs still read the old sums
            last = all_d < tl.where(end == size, DIM, 0)
            tl.store(new_norm + (row * heads + head) * DIM + all_d, z, mask=last)
