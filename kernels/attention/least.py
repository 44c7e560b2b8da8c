# SPDX-License-Identifier: Apache-2.0
"""What a result needs at least: pairs of queries and keys, and slots of pages."""

import torch

PAIRS = 1 << 15
"""At a time, of the queries and entries of a view."""


def dense_pairs(axes, bound):
    """Visible (query, key) pairs of one head (of the average head, under a block mask)."""
    lq, lk, mask = axes["Lq"], axes["Lk"], bound["block_mask"]
    window, causal = bound["window"], bound["causal"]
    window = lk + lq if window is None else window
    t = torch.arange(lk - lq, lk)[:, None]
    hi = (t + 1 if causal else t + window).clamp(0, lk)
    lo = (t - window + 1).clamp(0, lk)
    pinned = torch.minimum((t + 1).clamp(min=0) if causal else torch.tensor(lk), torch.tensor(lk))
    pinned = pinned.clamp(max=bound["sinks"])
    if mask is None:
        return int((hi - lo.maximum(pinned)).clamp(min=0).sum() + pinned.expand(lq, 1).sum())
    size = bound["block_size"]
    first = torch.arange(0, lk, size)[None, :]
    keys = (hi.minimum(first + size) - lo.maximum(first).maximum(pinned)).clamp(min=0).double()
    marks = mask.double().mean((0, 1)).cpu().repeat_interleave(size, 0)[:lq]
    return float((keys * marks).sum()) + int(pinned.expand(lq, 1).sum())


def view_pairs(bound):
    """Visible (query, key) pairs of a view, of one head."""
    return sum(float(pairs) for _, _, pairs, *_ in _seen(bound)) / max(_lists_each(bound), 1)


def _lists_each(bound):
    streams = bound["q_indptr"].numel() - 1
    return (bound["entry_indptr"].numel() - 1) // streams if streams else 1


def _seen(bound):
    """For every list its number, its entries, their visible pairs, and from which to before which
    of their slots queries see, whose orders rise by one."""
    order = bound["q_pos"] if bound["q_order"] is None else bound["q_order"]
    each = _lists_each(bound)
    rows, lists = bound["q_indptr"].tolist(), bound["entry_indptr"].tolist()
    for i in range((len(rows) - 1) * each):
        asked = order[rows[i // each] : rows[i // each + 1], None]
        if not len(asked):
            continue
        for entries in bound["entries"][lists[i] : lists[i + 1]].split(max(1, PAIRS // len(asked))):
            count, first = entries[:, 2], entries[:, 5]
            hi = (asked - first + 1).clamp(min=0).minimum(count)
            lo = (asked - entries[:, 6] + 1 - first).clamp(min=0).minimum(count)
            yield i, entries, (hi - lo).clamp(min=0).sum(), lo.amin(0), hi.amax(0)


def slots_read(axes, bound):
    """Slots that any query sees, each once however many lists have it, of one head of a page."""
    heads = axes["Hp"] if axes["G"] > 1 else 1  # that lists of their own look at
    begins, ends = [], []
    for i, entries, _, begin, end in _seen(bound):
        at = (entries[:, 0] * heads + i % heads) * axes["P"] + entries[:, 1]
        begins.append((at + begin)[end > begin])
        ends.append((at + end)[end > begin])
    return union(torch.cat(begins), torch.cat(ends)) if begins else 0


def union(begins, ends):
    """Integers that lie in any of the ranges."""
    if not len(begins):
        return 0
    order = begins.argsort()
    begins, ends = begins[order], ends[order]
    before = torch.cat([begins[:1], ends.cummax(0).values[:-1]])
    return int((ends - begins.maximum(before)).clamp(min=0).sum())
