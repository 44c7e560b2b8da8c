# SPDX-License-Identifier: Apache-2.0
"""What pooled_block_mask means, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch


def pooled(x, size):
    """Means of blocks of `size` rows of x [B, H, L, D]; the last block may be short."""
    parts = [part.mean(2) for part in x.split(size, 2) if part.shape[2]]
    return torch.stack(parts, 2) if parts else x[:, :, :0]


def near(q, k, q_len, k_len, size, reach, causal):
    """Whether blocks q [n, 1] and k [1, m] hold a query and a key less than `reach` apart."""
    oldest = q * size + k_len - q_len
    newest = ((q + 1) * size).clamp(max=q_len) - 1 + k_len - q_len
    top = newest if causal else newest + reach - 1
    last = ((k + 1) * size).clamp(max=k_len) - 1
    return (reach > 0) & (k * size <= top) & (last > oldest - reach)


def pooled_block_mask(q, k, share, blocks, block_size, window, sinks, local, causal):
    """The key blocks of the best pooled scores; see headrace.ops.pooled_block_mask."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    group, q_len, k_len = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    q, k = pooled(q.to(dtype), block_size), pooled(k.to(dtype), block_size)
    finite = k.isfinite()
    centre = k.where(finite, 0.0).sum(2, True) / finite.sum(2, True).clamp(min=1)
    score = q @ (k - centre).repeat_interleave(group, 1).mT
    score = score.masked_fill(score.isnan(), -torch.inf)

    i = torch.arange(q.shape[2], device=q.device)[:, None]
    j = torch.arange(k.shape[2], device=q.device)[None, :]
    size = (q_len, k_len, block_size)
    seen = near(i, j, *size, q_len + k_len if window is None else window, causal)
    pinned = (j * block_size < sinks) & near(i, j, *size, q_len + k_len, causal)
    forced = pinned | (seen & near(i, j, *size, local, causal))
    seen = seen | pinned

    candidates = seen.sum(1)
    rounded = (share * candidates.double() + 0.5).long().clamp(min=1)
    count = rounded if blocks is None else torch.full_like(candidates, blocks)
    count = count.maximum(forced.sum(1)).minimum(candidates)
    order = score.argsort(dim=-1, descending=True, stable=True)
    place = (forced.long() + seen.long()).expand(score.shape).gather(-1, order)
    order = order.gather(-1, place.argsort(dim=-1, descending=True, stable=True))
    kept = (j < count[:, None]).expand(score.shape)
    return torch.zeros_like(kept).scatter(-1, order, kept)
