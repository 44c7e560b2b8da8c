# SPDX-License-Identifier: Apache-2.0
"""Block-sparse `attention` in Triton: a tile of query rows over the sinks, then over its blocks.

A tile's rows lie in one query block and share one row of the mask: they are the positions of one
query head or, where heads share the mask, of all heads of one kv head. Key blocks that the mask
leaves out are not read. Not yet seen running on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_dense import _tiles
from .triton_tile import finish


@triton.jit(
    do_not_specialize=["q_len", "k_len", "window", "sinks", "size", "tiles", "split", "splits"]
)
def block_attention_kernel(
    q,
    k,
    v,
    o,
    lse,
    part_o,
    part_m,
    part_l,
    sink_logits,
    mask,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    mask_batch,
    mask_head,
    mask_row,
    mask_col,
    q_heads,
    kv_heads,
    heads,
    q_len,
    k_len,
    window,
    sinks,
    size,
    tiles,
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
    """`heads` query heads share a tile, of which a query block of `size` positions has `tiles`.

    Split i of `splits` takes key blocks [i * split, (i + 1) * split), and the first the sinks.
    """
    q_blocks = tl.cdiv(q_len, size)
    sets = q_heads // heads
    pid = tl.program_id(0)
    # The last positions see most; they go first, so that the multiprocessors end together.
    tile = q_blocks * tiles - 1 - pid % (q_blocks * tiles)
    rest = pid // (q_blocks * tiles)
    share = rest % splits
    rest = rest // splits
    first_head = (rest % sets).to(tl.int64) * heads
    batch = (rest // sets).to(tl.int64)
    kv_head = first_head // (q_heads // kv_heads)
    q_block = tile // tiles

    d = tl.arange(0, BD)
    flat = (tile % tiles) * BM + tl.arange(0, BM)
    row = (q_block * size + flat // heads).to(tl.int64)
    head = first_head + flat % heads
    stop_row = tl.minimum((q_block + 1) * size, q_len)
    valid = row < stop_row
    position = row + (k_len - q_len)
    at = batch * q_batch + head * q_head + row * q_row
    x = tl.load(q + at[:, None] + d[None, :], mask=valid[:, None] & (d[None, :] < D), other=0.0)

    first = q_block * size + (tile % tiles) * BM // heads
    last = tl.minimum(q_block * size + ((tile % tiles) * BM + BM - 1) // heads, stop_row - 1)
    oldest = first + k_len - q_len
    newest = last + k_len - q_len
    n_sinks = tl.minimum(sinks, k_len)
    if CAUSAL:
        n_sinks = tl.maximum(tl.minimum(n_sinks, newest + 1), 0)
        stop = newest + 1
    else:
        stop = newest + window
    stop = tl.minimum(stop, k_len)
    start = tl.minimum(tl.maximum(oldest - window + 1, tl.minimum(sinks, k_len)), k_len)
    stop = tl.maximum(stop, start)
    # Keys that every row sees, as far as the mask lets it.
    clear_lo = start
    clear_hi = stop
    if WINDOWED:
        clear_lo = tl.maximum(newest - window + 1, start)
        if not CAUSAL:
            clear_hi = tl.minimum(stop, oldest + window)
    if CAUSAL:
        clear_hi = tl.minimum(clear_hi, oldest + 1)

    acc = tl.zeros([BM, BD], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    kb = k + batch * k_batch + kv_head * k_head
    vb = v + batch * v_batch + kv_head * v_head
    if share > 0:
        n_sinks = 0
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
        0,
        n_sinks,
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
    marks = mask + batch * mask_batch + first_head * mask_head + q_block.to(tl.int64) * mask_row
    from_block = tl.maximum(start // size, share * split)
    to_block = tl.minimum(tl.cdiv(stop, size), (share + 1) * split)
    for block in range(from_block, to_block):
        if tl.load(marks + block * mask_col) != 0:
            lo = tl.maximum(block * size, start)
            hi = tl.minimum((block + 1) * size, stop)
            whole = (lo >= clear_lo) & (hi <= clear_hi) & ((hi - lo) % BN == 0)
            if whole:
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
                    False,
                    LOW,
                )
            else:
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
        to = ((batch * sets + first_head // heads) * splits + share) * BM + tl.arange(0, BM)
        tl.store(part_o + to[:, None] * D + d[None, :], acc, mask=d[None, :] < D)
        tl.store(part_m + to, m)
        tl.store(part_l + to, l)
