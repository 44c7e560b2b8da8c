# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.attention.spec import PAGED_ATTENTION
from .registry import register


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    entries: Tensor,
    entry_indptr: Tensor,
    q_indptr: Tensor,
    q_pos: Tensor,
    *,
    q_order: Tensor | None = None,
    inv_freq: Tensor | None = None,
    freq_axis: Tensor | None = None,
    rope_gain: float = 1.0,
    scale: float | None = None,
    softcap: float = 0.0,
    sink_logits: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    split: int = 1024,
    max_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of many streams, each over its own view of shared pages; gives (o, lse).

    q [T, Hq, D], not rotated; stream b owns rows q_indptr[b]:q_indptr[b+1] (int32 [B+1]) and list b
    of entries, entry_indptr[b]:entry_indptr[b+1] (int32 [B+1]). With entry_indptr [B*Hkv+1] every
    kv head g has a list of its own, number b*Hkv+g. k_pages [N, Hkv, D, P] and v_pages [N, Hkv, P,
    D] as `append` wrote them, whatever q's dtype; or, with a list per head, [N, 1, D, P] and [N, 1,
    P, D]: pages that hold one head each.

    entries int64 [E, 7], the columns of `headrace.memory.view`: page, first, count, origin, cap,
    order, reach. Slot first+i holds a key of order `order+i`, seen by a query of order t iff
    order+i <= t and t - (order+i) < reach. The query is rotated by min(q_pos - origin, cap) steps;
    keys never are. With three axes (M-RoPE, video), q_pos is int64 [T, 3], entries have [E, 11]:
    origin and cap of axes 1 and 2 follow, and freq_axis int32 [R] in 0..2 says which axis turns
    each frequency (`headrace.ops.rope` makes it). q_order int64 [T] defaults to a q_pos of one
    axis. inv_freq fp64 [R], 2R <= D, None for no rotation; rope_gain multiplies the turned
    dimensions of the query (YaRN's attention factor, squared). softcap c > 0 maps logits x to
    c tanh(x / c); sink_logits fp32 [Hq] adds exp(b) to the denominator once. scale defaults to
    D ** -0.5.

    Pages are fp32, bf16, fp16, or int8 and float8_e4m3fn with k_scale, v_scale fp32 [N, Hkv, P]
    (one per slot) or [N, Hkv, 1] (one per page); a key is its code times its scale.

    o [T, Hq, D] in q's dtype; lse fp32 [T, Hq], natural logarithm, without the learned sink. A row
    that sees nothing gives 0 and -inf. Row bits do not depend on the other streams, on the slot of
    a page in the pool, or on the number of threads; on a GPU they depend on how many rows the
    row's own stream brings. `split` (tokens per split of a long view) changes rounding. max_rows:
    no stream brings more rows than that, here and in every replay of a captured graph; it saves a
    GPU launches for streams of many rows (None: the device has to look). What a row does not see
    never reaches it; on a GPU a NaN or an infinity among the values that one row sees may reach
    rows of its stream within 64 of it. Raises TypeError, ValueError or NotImplementedError naming
    the argument.
    """
    return _way()(
        q, k_pages, v_pages, entries, entry_indptr, q_indptr, q_pos, q_order, inv_freq, scale,
        softcap, sink_logits, freq_axis, rope_gain, k_scale, v_scale, split, max_rows,
    )  # fmt: skip


_way = register(PAGED_ATTENTION)
