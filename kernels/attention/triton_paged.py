# SPDX-License-Identifier: Apache-2.0
"""`paged_attention` in Triton: blocks of query rows over a view that only the device knows.

`paged_count_kernel` finds the rows and visible tokens of every block, `paged_cut_kernel` numbers
the splits, `paged_kernel` runs one split and `paged_join_kernel` joins those of a block. The host
reads no number of the view, so a captured graph replays over edited views.

Consecutive entries of one origin and cap share one rotated block of queries. Angles are wrapping
integers (see `phase_step`), exact at any distance. An entry that names slots outside the pool is
empty: a device cannot raise. A chunk of few blocks is split every `split` visible tokens; longer
ones fill the device as they are. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_plan import UNLIMITED, entry_keys
from .triton_tile import cos_sin, decode, finish, fold, join, phase_step


@triton.jit(do_not_specialize=["blocks", "pages"])
def paged_kernel(
    q,
    k_pages,
    v_pages,
    o,
    lse,
    entries,
    q_pos,
    q_order,
    inv_freq,
    sink_logits,
    plan,
    work,
    part_o,
    part_m,
    part_l,
    freq_axis,
    k_scale,
    v_scale,
    q_row,
    q_head,
    k_page,
    k_head,
    v_page,
    v_head,
    k_scale_page,
    k_scale_head,
    k_scale_slot,
    v_scale_page,
    v_scale_head,
    v_scale_slot,
    q_heads,
    kv_heads,
    blocks,
    pages,
    half,
    split,
    scale,
    softcap,
    gain,
    D: tl.constexpr,
    BD: tl.constexpr,
    P: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ROTARY: tl.constexpr,
    CAPPED: tl.constexpr,
    HAS_SINK: tl.constexpr,
    LOW: tl.constexpr,
    AXES: tl.constexpr,
    FIELDS: tl.constexpr,
    LISTS: tl.constexpr,
    FORMAT: tl.constexpr,
):
    shared = kv_heads // LISTS  # kv heads that share a list of entries
    item = tl.program_id(0) // shared
    if item >= tl.load(work + blocks):
        return
    below = 0  # the block that owns the item, by bisection
    above = blocks
    while above - below > 1:
        mid = (above + below) // 2
        if tl.load(work + mid) <= item:
            below = mid
        else:
            above = mid
    kv_head = (tl.program_id(0) % shared + below % LISTS).to(tl.int64)
    info = plan + below.to(tl.int64) * 8
    row0 = tl.load(info)
    rows = tl.load(info + 1)
    block = tl.load(info + 2)
    first_entry = tl.load(info + 3)
    last_entry = tl.load(info + 4)
    oldest = tl.load(info + 5)
    newest = tl.load(info + 6)
    splits = tl.load(info + 7)
    begin = (item - tl.load(work + below)).to(tl.int64) * split
    end = tl.where(splits > 1, begin + split, UNLIMITED)

    group = q_heads // kv_heads
    d = tl.arange(0, BD)
    flat = block * BM + tl.arange(0, BM)
    row = row0 + flat // group
    head = kv_head * group + flat % group
    valid = flat < rows * group
    order = tl.load(q_order + row, mask=valid, other=0)
    at = q + (row * q_row + head * q_head)[:, None]
    x = tl.load(at + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0)
    turned = x
    if not LOW:
        turned = x.to(tl.float32)
    if ROTARY:
        # Dimension d pairs with `mate`, which comes in with a minus for the lower half.
        low_half = d < half
        turns = d < 2 * half
        mate = tl.where(low_half, d + half, d - half)
        freq = tl.load(inv_freq + tl.where(low_half, d, d - half), mask=turns, other=0.0)
        step = phase_step(freq)
        pos = tl.load(q_pos + row * AXES, mask=valid, other=0)
        by = tl.where(turns, gain, 1.0)
        if AXES == 3:
            pos_1 = tl.load(q_pos + row * 3 + 1, mask=valid, other=0)
            pos_2 = tl.load(q_pos + row * 3 + 2, mask=valid, other=0)
            axis = tl.load(freq_axis + tl.where(low_half, d, d - half), mask=turns, other=0)
    # A query that was turned is two of 16 bits: its value, and what rounding lost.
    TWO: tl.constexpr = LOW and ROTARY
    rest = None
    if TWO:
        rest = tl.zeros_like(turned)
    turned_for = entries  # the entry for which the queries are rotated
    is_turned = newest < newest

    acc = tl.zeros([BM, BD], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    lane = tl.arange(0, 64)
    cols = tl.arange(0, BN)
    passed = newest * 0  # visible tokens of the entries before this group
    tiles: tl.constexpr = (P + BN - 1) // BN
    for e0 in range(first_entry, last_entry, 64):
        lo_all, hi_all = entry_keys(
            entries, e0 + lane, last_entry, pages, oldest, newest, P, FIELDS
        )
        n_all = hi_all - lo_all
        starts = passed + tl.cumsum(n_all, 0) - n_all
        mine = (n_all > 0) & (starts < end) & (starts + n_all > begin)
        i_lo = tl.min(tl.where(mine, lane, 64), 0)
        i_hi = tl.max(tl.where(mine, lane + 1, 0), 0)
        gone = passed + tl.sum(tl.where(lane < i_lo, n_all, 0), 0)
        passed += tl.sum(n_all, 0)
        for i in range(i_lo * tiles, i_hi * tiles):
            e = e0 + i // tiles
            lo, hi = entry_keys(entries, e, last_entry, pages, oldest, newest, P, FIELDS)
            entry = entries + e * FIELDS
            page = tl.load(entry)
            first = tl.load(entry + 1)
            origin = tl.load(entry + 3)
            cap = tl.load(entry + 4)
            key_order = tl.load(entry + 5)
            reach = tl.minimum(tl.load(entry + 6), UNLIMITED)
            # Slots of the page that this split owns.
            slot_lo = first + lo + tl.minimum(tl.maximum(begin - gone, 0), hi - lo)
            slot_hi = first + lo + tl.minimum(tl.maximum(end - gone, 0), hi - lo)
            if i % tiles == tiles - 1:
                gone += hi - lo
            if ROTARY:
                same = is_turned & (tl.load(turned_for + 3) == origin)
                same = same & (tl.load(turned_for + 4) == cap)
                if AXES == 3:
                    for j in tl.static_range(7, 11):
                        same = same & (tl.load(turned_for + j) == tl.load(entry + j))
                if not same:
                    turned_for = entry
                    is_turned = newest == newest
                    # From memory again: origins change seldom, and registers are few.
                    half_a = tl.load(
                        at + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0
                    ).to(tl.float32)
                    half_b = tl.load(
                        at + mate[None, :], mask=valid[:, None] & turns[None, :], other=0.0
                    ).to(tl.float32)
                    half_b = tl.where(low_half[None, :], -half_b, half_b)
                    away = tl.minimum(pos - origin, cap)[:, None]
                    if AXES == 3:
                        more = tl.minimum(pos_1 - tl.load(entry + 7), tl.load(entry + 8))
                        away = tl.where((axis == 1)[None, :], more[:, None], away)
                        more = tl.minimum(pos_2 - tl.load(entry + 9), tl.load(entry + 10))
                        away = tl.where((axis == 2)[None, :], more[:, None], away)
                    c, s = cos_sin(away * step[None, :])
                    exact = (half_a * c + half_b * s) * by[None, :]
                    turned = exact.to(turned.dtype)
                    if TWO:
                        rest = (exact - turned.to(tl.float32)).to(turned.dtype)
            slot = (i % tiles) * BN + cols
            inside = (slot >= slot_lo) & (slot < slot_hi)
            # Whole runs of 16 slots, which never leave the page, keep the loads wide.
            run = slot // 16 * 16
            touched = (run + 16 > slot_lo) & (run < tl.where(slot_lo < slot_hi, slot_hi, 0))
            kt = tl.load(
                k_pages + page * k_page + kv_head * k_head + d[:, None] * P + slot[None, :],
                mask=(d < D)[:, None] & touched[None, :],
                other=0,
            )
            # Slots that each row sees, in 64 bits by row and in 32 by element.
            row_lo = first + tl.minimum(tl.maximum(order - reach + 1 - key_order, 0), P)
            row_hi = first + tl.minimum(tl.maximum(order - key_order + 1, 0), P)
            seen = inside[None, :] & (slot[None, :] >= row_lo.to(tl.int32)[:, None])
            seen = seen & (slot[None, :] < row_hi.to(tl.int32)[:, None])
            used = inside & (tl.max(seen.to(tl.int32), 0) > 0)
            vt = tl.load(
                v_pages + page * v_page + kv_head * v_head + slot[:, None] * D + d[None, :],
                mask=used[:, None] & (d < D)[None, :],
                other=0,
            )
            k_by = 1.0
            v_by = 1.0
            if FORMAT > 2:
                kt = decode(kt, FORMAT).to(turned.dtype)
                vt = decode(vt, FORMAT).to(turned.dtype)
                k_at = k_scale + page * k_scale_page + kv_head * k_scale_head
                v_at = v_scale + page * v_scale_page + kv_head * v_scale_head
                k_by = tl.load(k_at + slot * k_scale_slot, mask=inside, other=0.0)
                v_by = tl.load(v_at + slot * v_scale_slot, mask=used, other=0.0)
            acc, m, l = fold(
                turned, kt, vt, seen, acc, m, l, scale, softcap, CAPPED, True, LOW, k_by, v_by,
                FORMAT > 2, rest,
            )  # fmt: skip

    if splits == 1:
        sink = m
        if HAS_SINK:
            sink = tl.load(sink_logits + head, mask=valid, other=0.0)
        y, stat = finish(acc, m, l, sink, HAS_SINK)
        out = row * q_heads + head
        mask = valid[:, None] & (d < D)[None, :]
        tl.store(o + out[:, None] * D + d[None, :], y.to(o.dtype.element_ty), mask=mask)
        tl.store(lse + out, stat, mask=valid)
    else:
        to = (item * shared + tl.program_id(0) % shared).to(tl.int64) * BM + tl.arange(0, BM)
        tl.store(part_o + to[:, None] * D + d[None, :], acc, mask=(d < D)[None, :])
        tl.store(part_m + to, m)
        tl.store(part_l + to, l)


@triton.jit(do_not_specialize=["blocks"])
def paged_join_kernel(
    o,
    lse,
    sink_logits,
    plan,
    work,
    part_o,
    part_m,
    part_l,
    q_heads,
    kv_heads,
    blocks,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    HAS_SINK: tl.constexpr,
    LISTS: tl.constexpr,
):
    """Joins the splits of one block and kv head, in order."""
    shared = kv_heads // LISTS
    owner = tl.program_id(0) // shared
    kv_head = (tl.program_id(0) % shared + owner % LISTS).to(tl.int64)
    info = plan + owner.to(tl.int64) * 8
    splits = tl.load(info + 7)
    if splits < 2:
        return
    rows = tl.load(info + 1)
    group = q_heads // kv_heads
    d = tl.arange(0, BD)
    flat = tl.load(info + 2) * BM + tl.arange(0, BM)
    row = tl.load(info) + flat // group
    head = kv_head * group + flat % group
    valid = flat < rows * group
    acc = tl.zeros([BM, BD], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    first = tl.load(work + owner).to(tl.int64)
    for i in range(0, splits):
        at = ((first + i) * shared + tl.program_id(0) % shared) * BM + tl.arange(0, BM)
        acc_b = tl.load(part_o + at[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
        acc, m, l = join(acc, m, l, acc_b, tl.load(part_m + at), tl.load(part_l + at))
    sink = m
    if HAS_SINK:
        sink = tl.load(sink_logits + head, mask=valid, other=0.0)
    y, stat = finish(acc, m, l, sink, HAS_SINK)
    out = row * q_heads + head
    mask = valid[:, None] & (d < D)[None, :]
    tl.store(o + out[:, None] * D + d[None, :], y.to(o.dtype.element_ty), mask=mask)
    tl.store(lse + out, stat, mask=valid)
