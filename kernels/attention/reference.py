# SPDX-License-Identifier: Apache-2.0
"""What the attention ops mean, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

PAGE, FIRST, COUNT, ORIGIN, CAP, ORDER, REACH = range(7)


def rotate(x: Tensor, distance: Tensor, inv_freq: Tensor | None) -> Tensor:
    """x [..., D] turned by distance [...] steps: dimension i pairs with i + len(inv_freq)."""
    if inv_freq is None:
        return x
    half = inv_freq.numel()
    angle = distance.double()[..., None] * inv_freq
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def attend(
    logits: Tensor, v: Tensor, seen: Tensor, softcap: float, sink_logits: Tensor | None
) -> tuple[Tensor, Tensor]:
    """logits [..., H, Lq, Lk], v [..., H, Lk, D] masked by `seen`; lse without the learned sink."""
    if softcap > 0:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    total = lse
    if sink_logits is not None:
        total = torch.logaddexp(lse, sink_logits.to(lse)[:, None].expand_as(lse))
    weights = torch.exp(logits - torch.where(lse == -torch.inf, 0.0, total)[..., None])
    out = weights @ torch.where(v.isfinite(), v, 0.0)
    if not v.isfinite().all():  # NaN and infinity reach those who see them, and nobody else
        hit = seen.to(v.dtype).expand_as(weights) @ (~v.isfinite()).to(v.dtype)
        out = torch.where(hit > 0, weights @ v, out)
    return out, lse


def attention(
    q, k, v, window, sinks, sink_logits, causal, scale, softcap, block_mask=None, block_size=64
):
    """Sliding-window, block-sparse attention with sinks in SDPA's layout; see ops.attention."""
    out_dtype, dtype = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    group, q_len, k_len = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    t = torch.arange(q_len, device=q.device)[:, None] + k_len - q_len
    j = torch.arange(k_len, device=q.device)[None, :]
    seen = torch.ones(q_len, k_len, dtype=torch.bool, device=q.device)
    if window is not None:
        seen = (t - j < window) & (j - t < window)
    if block_mask is not None:
        wide = block_mask.repeat_interleave(block_size, 2)[:, :, :q_len]
        seen = seen & wide.repeat_interleave(block_size, 3)[..., :k_len]
    seen = seen | (j < sinks)
    if causal:
        seen = seen & (j <= t)
    o, lse = attend(q @ k.mT * scale, v, seen, softcap, sink_logits)
    return o.to(out_dtype), lse


def paged_attention(
    q,
    k_pages,
    v_pages,
    entries,
    entry_indptr,
    q_indptr,
    q_pos,
    q_order,
    inv_freq,
    scale,
    softcap,
    sink_logits,
):
    """Attention over a view of pages; see headrace.ops.paged_attention."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    o, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf, dtype=dtype)
    q_order = q_pos if q_order is None else q_order
    group = q.shape[1] // k_pages.shape[1]
    for b in range(len(q_indptr) - 1):
        rows = slice(int(q_indptr[b]), int(q_indptr[b + 1]))
        view = entries[int(entry_indptr[b]) : int(entry_indptr[b + 1])].tolist()
        if rows.start == rows.stop or not view:
            continue
        logits, values, seen = [], [], []
        for e in view:
            slots = slice(e[FIRST], e[FIRST] + e[COUNT])
            k = k_pages[e[PAGE], :, :, slots].to(dtype).repeat_interleave(group, 0)  # [Hq, D, n]
            v = v_pages[e[PAGE], :, slots].to(dtype).repeat_interleave(group, 0)  # [Hq, n, D]
            distance = (q_pos[rows] - e[ORIGIN]).clamp(max=e[CAP])
            turned = rotate(q[rows].to(dtype).transpose(0, 1), distance, inv_freq)  # [Hq, T, D]
            age = q_order[rows][:, None] - e[ORDER] - torch.arange(e[COUNT], device=q.device)
            logits.append(turned @ k * scale)
            values.append(v)
            seen.append((age >= 0) & (age < e[REACH]))
        out, stat = attend(
            torch.cat(logits, -1), torch.cat(values, 1), torch.cat(seen, -1), softcap, sink_logits
        )
        o[rows], lse[rows] = out.transpose(0, 1).to(o.dtype), stat.T
    return o, lse


def append(k, v, k_pages, v_pages, where, inv_freq):
    """Rotates keys about their page's origin; writes keys and values into their slots in place."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    turned = rotate(k.to(dtype).transpose(0, 1), where[:, 2], inv_freq).transpose(0, 1)
    k_pages[where[:, 0], :, :, where[:, 1]] = turned.to(k_pages.dtype)
    v_pages[where[:, 0], :, where[:, 1]] = v.to(dtype).to(v_pages.dtype)


def merge_states(o_a, lse_a, o_b, lse_b):
    """The state of the union of two disjoint sets of keys, from the states of each."""
    dtype = torch.promote_types(o_a.dtype, torch.float32)
    lse = torch.logaddexp(lse_a, lse_b)
    safe = torch.where(lse == -torch.inf, 0.0, lse)
    w_a, w_b = torch.exp(lse_a - safe)[..., None], torch.exp(lse_b - safe)[..., None]
    part_a = torch.where(w_a == 0, 0.0, w_a * o_a.to(dtype))
    part_b = torch.where(w_b == 0, 0.0, w_b * o_b.to(dtype))
    return (part_a + part_b).to(o_a.dtype), lse
