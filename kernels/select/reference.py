# SPDX-License-Identifier: Apache-2.0
"""What select means, in plain torch. Scores are compared in fp32, masses add up in fp64."""

from __future__ import annotations

import torch


def rank_of(s, grade):
    """Place of every element along the last axis: by grade, then score, then index."""
    order = s.argsort(dim=-1, descending=True, stable=True)
    by_grade = grade.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, by_grade)
    places = torch.arange(s.shape[-1], device=s.device).expand(order.shape)
    return torch.empty_like(order).scatter_(-1, order, places)


def mass_count(s, rank, valid, counts, mass):
    """Length of the smallest prefix by rank that holds `mass` of all count * exp(s - max)."""
    if mass >= 1.0 or s.shape[-1] == 0:
        return torch.full_like(rank[..., :1].sum(-1), s.shape[-1])
    top = s.amax(-1, True)
    w = torch.where(s == top, 1.0, (s.double() - top.double()).exp())
    w = torch.where(valid, w if counts is None else w * counts.double(), 0.0)
    w = torch.zeros_like(w).scatter_(-1, rank, w)
    before = w.cumsum(-1) - w
    return (before < mass * w.sum(-1, True)).sum(-1)


def otsu_bins(s, valid):
    """Of 256 equal bins between the extremes, that of each score, and the last bin of the lower
    class at the first cut of the largest variance between classes; -1 where nothing separates."""
    finite = valid & (s < torch.inf)
    low = torch.where(finite, s, torch.inf).amin(-1, True)
    scale = 256.0 / (torch.where(finite, s, -torch.inf).amax(-1, True) - low)
    bins = ((s - low) * scale).nan_to_num(0, 255, 0).clamp(0, 255).long()
    zeros = torch.zeros(*s.shape[:-1], 256, device=s.device, dtype=torch.float64)
    n = zeros.scatter_add(-1, bins, valid.double())
    value = n * torch.arange(256.0, device=s.device, dtype=torch.float64)
    n0, s0 = n.cumsum(-1), value.cumsum(-1)
    n1, s1 = n0[..., -1:] - n0, s0[..., -1:] - s0
    apart = s1 / n1 - s0 / n0
    between = torch.where((n0 > 0) & (n1 > 0), n0 * n1 * apart * apart, 0.0)
    usable = (scale > 0) & (scale < torch.inf)
    return bins, torch.where(usable, between.argmax(-1, True), -1)


def bucket_rank(rank, buckets):
    """Place of every element by rank among those of its bucket."""
    order = rank.argsort(dim=-1)
    b = buckets.expand(rank.shape).gather(-1, order)
    grouped = b.argsort(dim=-1, stable=True)
    b = b.gather(-1, grouped).contiguous()
    place = torch.arange(b.shape[-1], device=b.device) - torch.searchsorted(b, b)
    return torch.empty_like(order).scatter_(-1, order.gather(-1, grouped), place)


def select(score, policy, k, budget, threshold, share, mass, counts, buckets, quota, floor, first,
           last, forced, lengths, lowest, capacity):  # fmt: skip
    """Ascending indices of what is kept, -1 behind them, and how many; see headrace.ops.select."""
    s = -score.float() if lowest else score.float()
    size = s.shape[-1]
    j = torch.arange(size, device=s.device)
    length = j.new_full((1, 1), size) if lengths is None else lengths.long().clamp(0, size)
    inside = (j < length[..., None]).expand(s.shape)
    must = (j < first) | (j >= length[..., None] - last)
    if forced is not None:
        must = must | ((j >= forced[..., :1]) & (j < forced[..., 1:])).any(-2)
    must = must & inside
    valid = inside & (s > -torch.inf)
    if policy == "quota":
        valid = valid & (buckets >= 0) & (buckets < size)
    s = s.masked_fill(~valid, -torch.inf)
    by_score = s.masked_fill(must, 0.0)
    rank = rank_of(by_score, 2 * must.long() + (valid & ~must).long())
    kept, n = must | valid, (must | valid).sum(-1)
    if policy == "threshold":
        n = (must | (valid & (s >= (-threshold if lowest else threshold)))).sum(-1)
    elif policy == "share":
        n = (share * n.double() + 0.5).floor().long()
    elif policy == "mass":
        n = mass_count(s, rank, valid, counts, mass)
    elif policy == "otsu" and size:
        bins, cut = otsu_bins(s, valid)
        n = (must | (valid & (bins > cut))).sum(-1)
    elif policy == "quota":
        kept = must | (valid & ((bucket_rank(rank, buckets) < quota) | (rank < floor)))
        rank = rank_of(by_score, 2 * must.long() + (kept & ~must).long())
    limit = n.new_full((1, 1), 2**62 if k is None else k)
    if budget is not None:
        limit = budget.long().clamp(min=0)
    if policy == "flat":
        base = kept.sum(-1).clamp(max=floor).maximum(must.sum(-1))
        grade = torch.where(rank < base[..., None], 2, kept.long())
        place = rank_of(s.flatten(1), grade.flatten(1)).view(s.shape)
        total = limit.maximum(base.sum(-1, True))[..., None]
        n = (kept & (place < total)).sum(-1)
    else:
        n = n.clamp(min=0 if policy == "quota" else floor).minimum(limit).maximum(must.sum(-1))
    if capacity is None:
        capacity = size if k is None or policy == "flat" else min(size, k)
    n = n.minimum(kept.sum(-1)).clamp(max=capacity)
    index = (rank >= n[..., None]).long().argsort(dim=-1, stable=True)[..., :capacity]
    index = torch.nn.functional.pad(index, (0, capacity - index.shape[-1]), value=-1)
    behind = torch.arange(capacity, device=s.device) >= n[..., None]
    return index.masked_fill(behind, -1).int(), n.int()
