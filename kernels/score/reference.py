# SPDX-License-Identifier: Apache-2.0
"""What the scoring ops mean, in plain torch. Computes in fp64 for fp64 inputs, else in fp32."""

from __future__ import annotations

import torch


def products(q, keys, upper):
    """Every query with every row of its kv head, [B, Hkv, G, W, N]; bits are signs."""
    if not q.is_floating_point():
        place = torch.arange(32, device=q.device, dtype=q.dtype)
        q, keys = (1 - 2.0 * ((x[..., None] >> place) & 1).flatten(-2) for x in (q, keys))
    dtype = torch.promote_types(torch.promote_types(q.dtype, keys.dtype), torch.float32)
    batch, heads, queries, dim = q.shape
    q = q.to(dtype).view(batch, keys.shape[1], heads // keys.shape[1], queries, dim)
    k = keys.to(dtype)[:, :, None].mT
    if upper is None:
        return q @ k
    return q.clamp(min=0) @ upper.to(dtype)[:, :, None].mT + q.clamp(max=0) @ k


def block_score(q, keys, upper, index, lengths, heads, queries, block_size, scale):
    """A score of every block for what is asked; see headrace.ops.block_score."""
    s = products(q, keys, upper)
    stored = keys.shape[2]
    if index is not None:
        index = index.long().expand(q.shape[0], -1)
        there = (index >= 0) & (index < stored)
        spread = index.where(there, 0)[:, None, None, None].expand(*s.shape[:-1], -1)
        s = s.gather(-1, spread) if stored else s.new_zeros(spread.shape)
    else:
        there = torch.ones(q.shape[0], stored, dtype=torch.bool, device=q.device)
    rows = s.shape[-1]
    if lengths is not None:
        there = there & (torch.arange(rows, device=q.device) < lengths[:, None])
    s = s.masked_fill(~there[:, None, None, None], -torch.inf)
    block_size = min(block_size, max(rows, 1))
    blocks = -(-rows // block_size)
    pad = blocks * block_size - rows
    s = torch.nn.functional.pad(s, (0, pad), value=-torch.inf)
    s = s.view(*s.shape[:-1], blocks, block_size).amax(-1)
    s = {"mean": s.mean, "sum": s.sum, "max": s.amax}[queries](3)
    s = {
        "each": lambda: s.flatten(1, 2),
        "group": lambda: s.sum(2),
        "group_max": lambda: s.amax(2),
        "sum": lambda: s.sum((1, 2))[:, None],
        "max": lambda: s.amax((1, 2))[:, None],
    }[heads]()
    return scale * s
