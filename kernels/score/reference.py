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


def segment_reduce(x, ids, total, low, high, unit, count):
    """Adds rows to the sums, bounds and counts of their segments; see ops.segment_reduce."""
    segments = next(s.shape[0] for s in (total, low, high, unit, count) if s is not None)
    for i, s in enumerate(ids.tolist()):
        if not 0 <= s < segments:
            continue
        row = x[i].to(torch.promote_types(x.dtype, torch.float32))
        if total is not None:
            total[s] += row
        if low is not None:
            low[s] = torch.minimum(low[s], row.to(low.dtype))
        if high is not None:
            high[s] = torch.maximum(high[s], row.to(high.dtype))
        if unit is not None:
            norm = row.norm(dim=-1, keepdim=True)
            unit[s] += torch.where(norm > 0, row / norm, 0.0)
        if count is not None:
            count[s] += 1


def attention_mass(q, k, lse, past, lengths, causal, reduce, exclude, pool, pooling, decay, scale):
    """The attention that every key receives from the queries; see ops.attention_mass."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    batch, _, queries, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    if lengths is None:
        lengths = torch.full((batch,), keys, device=q.device)
    lengths = lengths.long().clamp(0, keys)[:, None, None, None, None]
    j, w = (torch.arange(n, device=q.device) for n in (keys, queries))
    seen = (j < lengths).expand(-1, -1, -1, queries, -1)
    if causal:
        seen = seen & (j <= lengths - queries + w[:, None])
    k = k.to(dtype).masked_fill(~(j < lengths[:, 0, 0, 0])[:, None, :, None], 0.0)
    logits = q.to(dtype).view(batch, kv_heads, -1, queries, dim) @ k[:, :, None].mT * scale
    logits = logits.masked_fill(~seen, -torch.inf)
    if lse is None:
        lse = logits.logsumexp(-1)
    lse = lse.view(logits.shape[:-1])[..., None].to(dtype)
    p = torch.where(seen & (lse > -torch.inf), (logits - lse).exp(), 0.0).flatten(2, 3)
    mass = {"mean": p.mean, "sum": p.sum, "max": p.amax}[reduce](2)
    mass = mass[..., : max(keys - exclude, 0)]
    there = torch.arange(mass.shape[-1], device=q.device) < lengths[:, 0, 0] - exclude
    mass = torch.where(there, mass, 0.0)
    if pool > 1 and mass.numel():
        by = torch.nn.functional.avg_pool1d if pooling == "mean" else torch.nn.functional.max_pool1d
        mass = torch.where(there, by(mass, pool, stride=1, padding=pool // 2), 0.0)
    if past is not None:
        more = past.shape[-1]
        mass = mass.clone()
        mass[..., :more] += decay * past.to(dtype)
    return mass


def assign(x, c, lengths, metric, threshold, causal, bipartite):
    """The most similar candidate of every row, -1 for none; see ops.assign."""
    step = 2 if bipartite else 1
    c = x[:, 1::2] if bipartite else x if c is None else c
    x = x[:, ::step]
    if metric == "hamming":
        place = torch.arange(32, device=x.device, dtype=x.dtype)
        a, b = (((y[..., None] >> place) & 1).flatten(-2).float() for y in (x, c))
        s = -(a.unsqueeze(2) != b.unsqueeze(1)).sum(-1).float()
    else:
        dtype = torch.promote_types(x.dtype, torch.float32)
        a, b = x.to(dtype), c.to(dtype)
        if metric == "cos":
            a, b = (
                torch.where((n := y.norm(dim=-1, keepdim=True)) == 0, 0.0, y / n) for y in (a, b)
            )
        s = a @ b.mT if metric != "l2" else -(a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)
    j, i = (torch.arange(n, device=x.device) for n in (s.shape[2], s.shape[1]))
    seen = torch.ones_like(s, dtype=torch.bool)
    if lengths is not None:
        seen = seen & (j < lengths[:, None, None])
    if causal:
        seen = seen & (j < i[:, None])
    s = torch.where(seen & ~s.isnan(), s, -torch.inf)
    if s.shape[2] == 0:
        best = s.new_full(s.shape[:2], -torch.inf)
        return torch.full_like(best, -1).int(), best
    best, id = s.amax(-1), (s == s.amax(-1, True)).int().argmax(-1)
    kept = (best > -torch.inf) & (best >= (-torch.inf if threshold is None else threshold))
    return torch.where(kept, step * id + step - 1, -1).int(), best
