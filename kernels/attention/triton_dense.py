# SPDX-License-Identifier: Apache-2.0
"""`attention` in Triton: a block of query rows over its sinks, then over its window.

Rows of a block are the query heads of one kv head, position by position, so that keys and values
are read once per kv head. Tiles outside the block's visible range are not read. A call whose rows
fill one block (decode) cuts its keys into splits of fixed size. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tile import finish, fold, join


@triton.jit
def _tiles(
    acc,
    m,
    l,
    q,
    position,
    k,
    v,
    k_row,
    v_row,
    begin,
    end,
    sinks,
    window,
    scale,
    softcap,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    SINK: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    LOW: tl.constexpr,
):
    """Keys [begin, end) in tiles of BN; SINK says which rule hides a key."""
    d = tl.arange(0, BD)
    cols = tl.arange(0, BN)
    for start in range(begin, end, BN):
        j = start + cols.to(tl.int64)
        if MASKED:
            inside = j < end
            k_mask = (d[:, None] < D) & inside[None, :]
            v_mask = inside[:, None] & (d[None, :] < D)
        else:
            k_mask = (d < D)[:, None]
            v_mask = (d < D)[None, :]
        kt = tl.load(k + d[:, None] + j[None, :] * k_row, mask=k_mask, other=0.0)
        vt = tl.load(v + j[:, None] * v_row + d[None, :], mask=v_mask, other=0.0)
        seen = position  # not looked at unless the tile is masked
        if MASKED:
            age = position[:, None] - j[None, :]
            seen = inside[None, :] & ((age >= 0) | (not CAUSAL))
            if WINDOWED and not SINK:
                seen = seen & (age < window) & (age > -window)
        acc, m, l = fold(q, kt, vt, seen, acc, m, l, scale, softcap, CAPPED, MASKED, LOW)
    return acc, m, l


@triton.jit(do_not_specialize=["q_len", "k_len", "window", "sinks", "split", "splits"])
def attention_kernel(
    q,
    k,
    v,
    o,
    lse,
    part_o,
    part_m,
    part_l,
    sink_logits,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    q_heads,
    kv_heads,
    q_len,
    k_len,
    window,
    sinks,
    split,
    splits,
    scale,
    softcap,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    HAS_SINK: tl.constexpr,
    LOW: tl.constexpr,
):
    group = q_heads // kv_heads
    blocks = tl.cdiv(q_len * group, BM)
    pid = tl.program_id(0)
    # The last positions see most; they go first, so that the multiprocessors end together.
    block = blocks - 1 - pid % blocks
    rest = pid // blocks
    share = rest % splits
    rest = rest // splits
    kv_head = (rest % kv_heads).to(tl.int64)
    batch = (rest // kv_heads).to(tl.int64)

    d = tl.arange(0, BD)
    flat = block * BM + tl.arange(0, BM)
    row = (flat // group).to(tl.int64)
    head = kv_head * group + flat % group
    valid = row < q_len
    position = row + (k_len - q_len)
    at = batch * q_batch + head * q_head + row * q_row
    x = tl.load(q + at[:, None] + d[None, :], mask=valid[:, None] & (d[None, :] < D), other=0.0)

    oldest = (block * BM) // group + k_len - q_len
    newest = tl.minimum((block * BM + BM - 1) // group, q_len - 1) + k_len - q_len
    n_sinks = tl.minimum(sinks, k_len)
    if CAUSAL:
        n_sinks = tl.maximum(tl.minimum(n_sinks, newest + 1), 0)
        stop = newest + 1
    else:
        stop = newest + window
    stop = tl.minimum(stop, k_len)
    start = tl.minimum(tl.maximum(oldest - window + 1, tl.minimum(sinks, k_len)), k_len)
    stop = tl.maximum(stop, start)
    # This split's part of the visible keys, counted over sinks first.
    begin = share * split
    end = begin + split
    sink_lo = tl.minimum(begin, n_sinks)
    sink_hi = tl.minimum(end, n_sinks)
    lo = tl.minimum(start + tl.maximum(begin - n_sinks, 0), stop)
    hi = tl.minimum(start + tl.maximum(end - n_sinks, 0), stop)
    # Tiles that every row sees whole need no mask.
    whole_lo = lo
    whole_hi = hi
    if WINDOWED:
        whole_lo = tl.minimum(lo + tl.cdiv(tl.maximum(newest - window + 1 - lo, 0), BN) * BN, hi)
        if not CAUSAL:
            whole_hi = tl.minimum(hi, oldest + window)
    if CAUSAL:
        whole_hi = tl.minimum(hi, oldest + 1)
    whole_hi = whole_lo + tl.maximum(whole_hi - whole_lo, 0) // BN * BN

    acc = tl.zeros([BM, BD], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    kb = k + batch * k_batch + kv_head * k_head
    vb = v + batch * v_batch + kv_head * v_head
    if WINDOWED:
        acc, m, l = _tiles(
            acc,
            m,
            l,
            x,
            position,
            kb,
            vb,
            k_row,
            v_row,
            sink_lo,
            sink_hi,
            sinks,
            window,
            scale,
            softcap,
            D,
            BD,
            BS,
            True,
            WINDOWED,
            CAUSAL,
            CAPPED,
            True,
            LOW,
        )
    acc, m, l = _tiles(
        acc,
        m,
        l,
        x,
        position,
        kb,
        vb,
        k_row,
        v_row,
        lo,
        whole_lo,
        sinks,
        window,
        scale,
        softcap,
        D,
        BD,
        BN,
        False,
        WINDOWED,
        CAUSAL,
        CAPPED,
        True,
        LOW,
    )
    acc, m, l = _tiles(
        acc,
        m,
        l,
        x,
        position,
        kb,
        vb,
        k_row,
        v_row,
        whole_lo,
        whole_hi,
        sinks,
        window,
        scale,
        softcap,
        D,
        BD,
        BN,
        False,
        WINDOWED,
        CAUSAL,
        CAPPED,
        False,
        LOW,
    )
    acc, m, l = _tiles(
        acc,
        m,
        l,
        x,
        position,
        kb,
        vb,
        k_row,
        v_row,
        whole_hi,
        hi,
        sinks,
        window,
        scale,
        softcap,
        D,
        BD,
        BN,
        False,
        WINDOWED,
        CAUSAL,
        CAPPED,
        True,
        LOW,
    )

    out = (batch * q_heads + head) * q_len + row
    o_mask = valid[:, None] & (d[None, :] < D)
    if splits == 1:
        sink = m
        if HAS_SINK:
            sink = tl.load(sink_logits + head, mask=valid, other=0.0)
        y, stat = finish(acc, m, l, sink, HAS_SINK)
        tl.store(o + out[:, None] * D + d[None, :], y.to(o.dtype.element_ty), mask=o_mask)
        tl.store(lse + out, stat, mask=valid)
    else:
        to = ((batch * kv_heads + kv_head) * splits + share) * BM + tl.arange(0, BM)
        tl.store(part_o + to[:, None] * D + d[None, :], acc, mask=d[None, :] < D)
        tl.store(part_m + to, m)
        tl.store(part_l + to, l)


@triton.jit(do_not_specialize=["q_len", "splits"])
def attention_join_kernel(
    o,
    lse,
    part_o,
    part_m,
    part_l,
    sink_logits,
    q_heads,
    kv_heads,
    q_len,
    splits,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    HAS_SINK: tl.constexpr,
):
    """Joins the splits of one block, in order."""
    group = q_heads // kv_heads
    pid = tl.program_id(0).to(tl.int64)
    batch, kv_head = pid // kv_heads, pid % kv_heads
    d = tl.arange(0, BD)
    flat = tl.arange(0, BM)
    row = (flat // group).to(tl.int64)
    head = kv_head * group + flat % group
    valid = row < q_len
    acc = tl.zeros([BM, BD], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    for i in range(splits):
        at = (pid * splits + i) * BM + flat
        acc_b = tl.load(part_o + at[:, None] * D + d[None, :], mask=d[None, :] < D, other=0.0)
        acc, m, l = join(acc, m, l, acc_b, tl.load(part_m + at), tl.load(part_l + at))
    sink = m
    if HAS_SINK:
        sink = tl.load(sink_logits + head, mask=valid, other=0.0)
    y, stat = finish(acc, m, l, sink, HAS_SINK)
    out = (batch * q_heads + head) * q_len + row
    mask = valid[:, None] & (d[None, :] < D)
    tl.store(o + out[:, None] * D + d[None, :], y.to(o.dtype.element_ty), mask=mask)
    tl.store(lse + out, stat, mask=valid)
