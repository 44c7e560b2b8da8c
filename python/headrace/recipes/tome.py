# SPDX-License-Identifier: Apache-2.0
"""ToMe: in every layer of an encoder the most similar pairs of tokens become one.

Bolya et al., ICLR 2023, arXiv 2210.09461, and its code (github.com/facebookresearch/ToMe): tokens
at even places look for the nearest of those at odd places, by the cosine of keys averaged over the
heads; the `r` best pairs merge into means weighted by how many tokens each already stands for, at
most half of what may merge. A class token at the front stays alone. Attention then adds the
logarithm of the sizes to its logits. Here tokens stay in their order; in the code those that merged
come last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..ops.compact import Compacted
from .common import whole_number


def pairs(metric: Tensor, r: int, *, class_token: bool = False) -> tuple[Tensor, Tensor]:
    """Who merges: mask bool [B, N] of the tokens that stay, target int32 [B, N] of the others.

    metric [B, N, E]: such as the mean of the keys over the heads; E a multiple of 16. Of equally
    similar pairs those at the lowest places merge. The target of those that stay is -1.
    """
    whole_number("tome", "r", r, 0)
    batch, n = metric.shape[:2]
    r = min(r, (n - class_token) // 2)
    stays = torch.ones(batch, n, dtype=torch.bool, device=metric.device)
    target = torch.full((batch, n), -1, dtype=torch.int32, device=metric.device)
    if r > 0:
        id, near = ops.assign(metric, bipartite=True)
        near = near.where(id >= 0, -2.0)  # like nothing: goes last, and merges with nothing
        if class_token:
            near[:, 0] = -torch.inf
        index, _ = ops.select(near, k=r)
        stays.scatter_(1, 2 * index.long(), False)
        target[:, ::2] = id.where(~stays[:, ::2], -1)
    return stays, target


def merge(
    x: Tensor, metric: Tensor, r: int, *, sizes: Tensor | None = None, class_token: bool = False
) -> Compacted:
    """Tokens y [B, N - r, D] of x [B, N, D], their sizes fp32 and the places where they stood.

    sizes fp32 [B, N]: what each token stands for so far, 1 without it.
    """
    stays, target = pairs(metric, r, class_token=class_token)
    room = x.shape[1] - min(r, (x.shape[1] - class_token) // 2)
    return ops.compact(x, mask=stays, target=target, weights=sizes, capacity=room)
