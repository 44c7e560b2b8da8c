# SPDX-License-Identifier: Apache-2.0
"""What HSTU attention means, in plain torch. Computes in fp64 when the inputs are, else in fp32."""

from __future__ import annotations

import torch


def visible(t, o, history, causal, max_attn_len, contextual_seq_len, min_full_attn_seq_len, sinks):
    """[rows, keys] bool: may the token of index t see that of index o? Targets follow `history`."""
    context = min(contextual_seq_len, history)
    top = history - context + (context > 0)
    # The prefix stands at 0, all targets where the first of them does.
    row, col = ((x - context + (context > 0)).clamp(0, top) for x in (t[:, None], o[None]))
    age = row - col if causal else (row - col).abs()
    seen = age > 0
    if max_attn_len > 0:
        exempt = (row >= top - min_full_attn_seq_len) & (min_full_attn_seq_len > 0)
        seen &= (age <= max_attn_len) | exempt
    seen |= (o < t[:, None]) & (o < min(sinks, history))
    if context > 0:
        seen |= (row == 0) & (o < history)
    return seen | (t[:, None] == o)


def sequences(k_indptr, q_indptr, num_targets, k_order):
    """Of every sequence: rows of q, rows of k, indices of both, how many tokens precede targets."""
    for b in range(k_indptr.numel() - 1):
        rows, keys = (
            slice(int(x[b]), int(x[b + 1]))
            for x in (k_indptr if q_indptr is None else q_indptr, k_indptr)
        )
        o = torch.arange(keys.stop - keys.start) if k_order is None else k_order[keys].cpu()
        length = int(o.max()) + 1 if o.numel() else 0
        t = torch.arange(length - (rows.stop - rows.start), length)
        yield rows, keys, t, o, length - (0 if num_targets is None else int(num_targets[b]))


def hstu_attention(
    q,
    k,
    v,
    k_indptr,
    q_indptr,
    num_targets,
    k_order,
    attn_scale,
    max_seq_len,
    alpha,
    causal,
    max_attn_len,
    contextual_seq_len,
    min_full_attn_seq_len,
    sinks,
):
    """silu(alpha q k^T) where visible, over max_seq_len or by attn_scale, times v."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    rules = dict(
        causal=causal,
        max_attn_len=max_attn_len,
        contextual_seq_len=contextual_seq_len,
        min_full_attn_seq_len=min_full_attn_seq_len,
        sinks=sinks,
    )
    out = torch.zeros(q.shape[0], *v.shape[1:], dtype=dtype, device=q.device)
    for rows, keys, t, o, history in sequences(k_indptr, q_indptr, num_targets, k_order):
        s = torch.einsum("ihd,jhd->hij", q[rows].to(dtype), k[keys].to(dtype)) * alpha
        a = torch.nn.functional.silu(s) * visible(t, o, history, **rules).to(q.device)
        scale = 1 / max_seq_len if attn_scale is None else attn_scale[rows, None, None].to(dtype)
        out[rows] = torch.einsum("hij,jhd->ihd", a, v[keys].to(dtype)) * scale
    return out.to(q.dtype)
