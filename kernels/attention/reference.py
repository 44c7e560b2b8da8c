# SPDX-License-Identifier: Apache-2.0
"""What the attention ops mean, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

PAGE, FIRST, COUNT, ORIGIN, CAP, ORDER, REACH, ORIGIN_1, CAP_1, ORIGIN_2, CAP_2 = range(11)
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
TINY = 2.0**-100
"""A row none of whose magnitudes reaches this is stored as zeros, with scale 0."""


def rotate(x: Tensor, distance: Tensor, inv_freq: Tensor | None, axis: Tensor | None, gain=1.0):
    """x [..., D] turned by distance [..., A] steps: dimension i pairs with i + len(inv_freq).

    Frequency i turns by the distance along axis[i], of A axes; `gain` multiplies what is turned.
    """
    if inv_freq is None:
        return x
    half = inv_freq.numel()
    steps = distance if axis is None else distance[..., axis.long()]
    angle = steps.double() * inv_freq
    cos, sin = gain * angle.cos().to(x.dtype), gain * angle.sin().to(x.dtype)
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
    freq_axis=None,
    rope_gain=1.0,
    k_scale=None,
    v_scale=None,
):
    """Attention over a view of pages; see headrace.ops.paged_attention."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    o, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf, dtype=dtype)
    q_order = q_pos if q_order is None else q_order
    q_pos = q_pos if q_pos.dim() == 2 else q_pos[:, None]
    streams, lists = len(q_indptr) - 1, len(entry_indptr) - 1
    group = q.shape[1] // max(k_pages.shape[1], lists // max(streams, 1))
    for i in range(lists):
        b, g = divmod(i, lists // streams)
        one = lists > streams  # the list of one kv head, on pages of all of them or of its own
        own = slice(g, g + 1) if one and k_pages.shape[1] > 1 else slice(None)
        heads = slice(g * group, (g + 1) * group) if one else slice(None)
        rows = slice(int(q_indptr[b]), int(q_indptr[b + 1]))
        view = entries[int(entry_indptr[i]) : int(entry_indptr[i + 1])].tolist()
        if rows.start == rows.stop or not view:
            continue
        logits, values, seen = [], [], []
        for e in view:
            k = read(k_pages, k_scale, e, own, dtype, -1).repeat_interleave(group, 0)  # [H, D, n]
            v = read(v_pages, v_scale, e, own, dtype, -2).repeat_interleave(group, 0)  # [H, n, D]
            x, steps = q[rows, heads].to(dtype).transpose(0, 1), distances(q_pos[rows], e)
            logits.append(rotate(x, steps, inv_freq, freq_axis, rope_gain) @ k * scale)
            values.append(v)
            age = q_order[rows][:, None] - e[ORDER] - torch.arange(e[COUNT], device=q.device)
            seen.append((age >= 0) & (age < e[REACH]))
        learned = None if sink_logits is None else sink_logits[heads]
        out, stat = attend(
            torch.cat(logits, -1), torch.cat(values, 1), torch.cat(seen, -1), softcap, learned
        )
        o[rows, heads], lse[rows, heads] = out.transpose(0, 1).to(o.dtype), stat.T
    return o, lse


def distances(q_pos, entry):
    """Steps [T, A] from the origin of an entry, of A axes, to q_pos [T, A]; none beyond its cap."""
    origin, cap = [entry[ORIGIN], *entry[ORIGIN_1::2]], [entry[CAP], *entry[CAP_1::2]]
    return torch.minimum(q_pos - q_pos.new_tensor(origin), q_pos.new_tensor(cap))


def read(pages, scale, entry, heads, dtype, axis):
    """What an entry names of some heads of pages whose slots lie along `axis`, times its scale."""
    x = pages[entry[PAGE], heads].to(dtype)
    if scale is not None:
        x = x * scale[entry[PAGE], heads].to(dtype).unsqueeze(-3 - axis)
    return x.narrow(axis, entry[FIRST], entry[COUNT])


def append(k, v, k_pages, v_pages, where, inv_freq, freq_axis=None, k_scale=None, v_scale=None):
    """Rotates keys about their page's origin; writes keys and values into their slots in place."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    page, slot = where[:, 0], where[:, 1]
    turned = rotate(k.to(dtype).transpose(0, 1), where[:, 2:], inv_freq, freq_axis).transpose(0, 1)
    k_pages[page, :, :, slot] = quantise(turned, k_pages.dtype, k_scale, page, slot)
    v_pages[page, :, slot] = quantise(v.to(dtype), v_pages.dtype, v_scale, page, slot)


def quantise(x, dtype, scale, page, slot):
    """Rows x [T, Hkv, D] as they are stored in pages of `dtype`; writes their scales [N, Hkv, P].

    With scales [N, Hkv, 1] it reads them, and saturates.
    """
    if dtype not in LARGEST:
        return x.to(dtype)
    top = LARGEST[dtype]
    if scale.shape[2] == 1:
        step = scale[page, :, 0].to(x.dtype)
    else:
        step = x.abs().amax(-1) / top
        step = torch.where(step * top < TINY, 0.0, step)
        step = torch.where(x.isfinite().all(-1), step, torch.nan)
        scale[page, :, slot] = step.to(scale.dtype)
    y = torch.where((step == 0)[..., None], 0.0, x / step[..., None])
    if dtype == torch.int8:
        return y.nan_to_num(0.0).round().clamp(-top, top).to(dtype)
    return torch.where(y.isfinite(), y.clamp(-top, top), torch.nan).to(dtype)


def merge_states(o_a, lse_a, o_b, lse_b):
    """The state of the union of two disjoint sets of keys, from the states of each."""
    dtype = torch.promote_types(o_a.dtype, torch.float32)
    lse = torch.logaddexp(lse_a, lse_b)
    safe = torch.where(lse == -torch.inf, 0.0, lse)
    w_a, w_b = torch.exp(lse_a - safe)[..., None], torch.exp(lse_b - safe)[..., None]
    part_a = torch.where(w_a == 0, 0.0, w_a * o_a.to(dtype))
    part_b = torch.where(w_b == 0, 0.0, w_b * o_b.to(dtype))
    return (part_a + part_b).to(o_a.dtype), lse
