# SPDX-License-Identifier: Apache-2.0
"""What the ops mean, in plain torch; sums in fp64."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

SIMILAR = ("cos", "dot", "gauss")


def metric_of(metric, products, elements, alpha):
    """Scores from the sums of x.r, x.x, r.r, |x-r| and (x-r)^2 over what is compared."""
    xr, xx, rr, far, square = products
    if metric == "cos":
        norms = xx.sqrt() * rr.sqrt()
        return torch.where(norms == 0, 0.0, xr / norms)
    if metric == "l1":
        return far / elements.clamp(min=1)
    return {"dot": xr, "l2": square, "gauss": (-square / (2 * alpha)).exp()}[metric]


def sums_of(x, r):
    """The sums over the last axis, and how many elements they have."""
    products = [x * r, x * x, (r * r).expand(x.shape), (x - r).abs(), (x - r).square()]
    return [p.sum(-1) for p in products], x.new_full(x.shape[:-1], x.shape[-1])


def similarity(x, ref, metric, index, patch_height, patch_width, radius, alpha):
    """Similarity of rows, patches or frames to a reference; see headrace.ops.similarity."""
    x, ref = x.double(), ref.double()
    frames, height, width, _ = x.shape
    worst = -torch.inf if metric in SIMILAR else torch.inf
    if index is not None:
        index = index.long().expand(x.shape[:3])
        known = (index >= 0) & (index < ref.shape[2])
        rows = pad(ref[0, 0], (0, 0, 0, 1))
        r = rows[torch.where(known, index, ref.shape[2])]
        return metric_of(metric, *sums_of(x, r), alpha).masked_fill(~known, worst).float()
    best = None
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if abs(dy) >= max(height, 1) or abs(dx) >= max(width, 1):
                continue
            mine = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
            its = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
            r = ref[:, its[0], its[1]] if radius else ref
            products, elements = sums_of(x[:, mine[0], mine[1]], r)
            if (patch_height, patch_width) != (1, 1):
                high, wide = patch_height or max(1, height), patch_width or max(1, width)
                edge = (0, -width % wide, 0, -height % high)
                shape = (frames, -(-height // high), high, -(-width // wide), wide)
                products = [pad(p, edge).view(shape).sum((2, 4)) for p in products]
                elements = pad(elements, edge).view(shape).sum((2, 4))
            score = metric_of(metric, products, elements, alpha)
            if best is None and not radius:
                return score
            best = x.new_full(x.shape[:3], worst) if best is None else best
            better = torch.maximum if metric in SIMILAR else torch.minimum
            best[:, mine[0], mine[1]] = better(best[:, mine[0], mine[1]], score)
    return best


def kept_of(index, count, mask, capacity, shape):
    """int64 indices [B, H, K] with -1 behind, and counts, from a mask or an index."""
    batch, heads, size = shape
    if index is None:
        mask = mask.expand(batch, heads, size)
        capacity = size if capacity is None else capacity
        index = (~mask).long().argsort(dim=-1, stable=True)[..., :capacity]
        index = pad(index, (0, capacity - index.shape[-1]))
        count = mask.sum(-1)
    index = index.long().expand(batch, heads, index.shape[-1])
    count = index.new_full((), index.shape[-1]) if count is None else count.long()
    count = count.clamp(0, index.shape[-1]).expand(batch, heads)
    behind = torch.arange(index.shape[-1], device=index.device) >= count[..., None]
    return index.masked_fill(behind, -1), count


def rows_at(x, index):
    """Rows of x [B, H, N, D] that an index names, 0 where it is -1."""
    padded = pad(x, (0, 0, 0, 1))
    at = torch.where(index < 0, x.shape[2], index)
    return padded.gather(2, at[..., None].expand(*at.shape, x.shape[3]))


def compact(x, index, count, mask, target, weights, capacity):
    """Survivors, their sizes, indices and counts; see headrace.ops.compact."""
    batch, heads, size, _ = x.shape
    index, count = kept_of(index, count, mask, capacity, (batch, heads, size))
    y = rows_at(x, index)
    w = torch.ones(batch, heads, size, dtype=torch.float64, device=x.device)
    w = w if weights is None else weights.double().expand(w.shape)
    sizes = rows_at(w[..., None], index)[..., 0]
    if target is None:
        return y, sizes, index.int(), count.int()
    slots = torch.arange(index.shape[-1], device=x.device).expand(index.shape)
    slot = torch.full((batch, heads, size + 1), -1, device=x.device)
    slot = slot.scatter(-1, torch.where(index < 0, size, index), slots)
    slot[..., size] = -1
    target = target.long().expand(batch, heads, size)
    merged = slot.gather(-1, torch.where((target < 0) | (target >= size), size, target))
    home = torch.where(slot[..., :size] >= 0, slot[..., :size], merged)
    home = torch.where(home < 0, index.shape[-1], home)

    def add(rows):
        zeros = torch.zeros(batch, heads, index.shape[-1] + 1, rows.shape[-1], device=x.device)
        return zeros.double().scatter_add(2, home[..., None].expand(rows.shape), rows)[:, :, :-1]

    sizes, members = add(w[..., None]), add(torch.ones_like(w[..., None]))
    mean = add(w[..., None] * x.double()) / sizes
    y = torch.where((members <= 1) | (sizes == 0), y.double(), mean)
    return y.to(x.dtype), sizes[..., 0], index.int(), count.int()


def compact_inplace(x, index, count):
    """The rows of x that an index names move to its front; those behind stay as they are."""
    index, _ = kept_of(index, count, None, None, x.shape[:3])
    rows = min(index.shape[-1], x.shape[2])
    y = rows_at(x, index[..., :rows])
    x[:, :, :rows] = torch.where((index >= 0)[..., :rows, None], y, x[:, :, :rows])


def scatter_back(y, x, index, count, aligned=False):
    """Rows of x [B, H, K, D] (aligned: of the same places) to the rows of y that an index names."""
    index, _ = kept_of(index, count, None, None, y.shape[:3])
    x = rows_at(x, index) if aligned else x
    padded = pad(y, (0, 0, 0, 1))
    at = torch.where(index < 0, y.shape[2], index)
    padded.scatter_(2, at[..., None].expand(x.shape), x)
    y.copy_(padded[:, :, : y.shape[2]])
