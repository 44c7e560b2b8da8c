# SPDX-License-Identifier: Apache-2.0
"""LiveVLM: what vision looks at stays, spread over the video; pages come back by unrotated keys.

Ning et al., arXiv 2505.15269v2 (a note on it was read; its code was not to be had). Compression
(vision sink bucketing): tokens are scored by the attention that they get from the newest vision
tokens; the best stay wherever they are, then others by score as long as their bucket, one of as
many stretches of the video as the budget has room for, is not full. Memory is 12,000 tokens,
buckets hold one. Retrieval (position-agnostic): pages of 16 keys before rotation by their mean,
0.4 of the pages are taken.

Chosen here: half of the budget goes to the best wherever they are; a query head counts as much as
any other, and a question is the mean of its queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .common import Kept, summary, whole_number


def score(q: Tensor, k: Tensor, *, past: bool = False, lengths: Tensor | None = None) -> Tensor:
    """fp32 [B, Hkv, N]: attention that keys get from the newest vision tokens q [B, Hq, R, D].

    The last of them stands at the last key; with `past` all keys come before them.
    """
    return ops.attention_mass(q, k, causal=not past, lengths=lengths)


def keep(scores: Tensor, budget: int = 12_000, *, room: int = 1, free: float = 0.5) -> Kept:
    """Of scores [B, H, N] the int(free * budget) best, and of the rest the best whose bucket has
    room; `budget` in all at most. There are budget // room buckets; all stay if N is not more.
    """
    whole_number("live_vlm", "budget", budget, 0)
    whole_number("live_vlm", "room", room, 1)
    if not 0 <= free <= 1:
        raise bad_value("live_vlm", "free", "a share from 0 to 1", free)
    n = scores.shape[-1]
    if n <= budget:
        return ops.select(scores, k=n, last=n)
    buckets = max(1, budget // room)
    at = torch.arange(n, device=scores.device)
    bucket = ((at + 1) * buckets - 1) // n
    return ops.select(
        scores,
        "quota",
        buckets=bucket.int(),
        quota=room,
        floor=int(free * budget),
        k=budget,
        capacity=budget,
    )


def pages(k: Tensor, *, page: int = 16, lengths: Tensor | None = None) -> Tensor:
    """fp32 [B, Hkv, M, D]: mean key of every page of keys [B, Hkv, N, D] before rotation."""
    whole_number("live_vlm", "page", page, 1)
    states = summary(k, page, ("total", "count"), lengths)
    return states["total"] / states["count"].clamp(min=1)[..., None]


def recall(q: Tensor, mean: Tensor, *, share: float = 0.4, lengths: Tensor | None = None) -> Kept:
    """The `share` of pages, rounded to the nearest number, that the question q [B, Hq, W, D] likes
    best; the same for all heads, int32 [B, 1, K]. lengths: how many pages count.
    """
    s = ops.block_score(q, mean, scale=1 / q.shape[1], lengths=lengths)
    return ops.select(s, "share", share=share, lengths=lengths)
