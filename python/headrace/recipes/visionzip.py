# SPDX-License-Identifier: Apache-2.0
"""VisionZip: the tokens that the encoder itself looks at, and a few that stand for the rest.

Yang et al., CVPR 2025, arXiv 2412.04467, and its code (github.com/dvlab-research/VisionZip): in the
last but one layer the 54 tokens that get most attention from the class token, summed over the
heads, stay beside it; of the others every so manieth is a target, 10 in all, and each of the rest
goes to the target that its key, averaged over the heads, is most like. A target then is itself plus
the mean of those that came to it, as the code has it. An encoder without a class token takes the
mean attention of all tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .common import whole_number


def received(q: Tensor, k: Tensor, *, class_token: bool = True) -> Tensor:
    """fp32 [B, N]: attention that each token gets; q and k [B, H, N, D] of the encoder's layer."""
    mass = ops.attention_mass(q[:, :, :1] if class_token else q, k, causal=False)
    return mass.sum(1)


def compress(
    x: Tensor,
    metric: Tensor,
    attention: Tensor,
    *,
    dominant: int = 54,
    contextual: int = 10,
    class_token: bool = True,
) -> tuple[Tensor, Tensor]:
    """What stands for x [B, N, D]: tokens [B, M, D], those that stay first, and their places.

    metric [B, N, E]: keys averaged over the heads, E a multiple of 16. attention fp32 [B, N], as
    `received` gives it. Places int32 [B, M]: of the token itself or of the target, in x. M is
    dominant + contextual, one more with a class token, at most N.
    """
    whole_number("visionzip", "dominant", dominant, 0)
    whole_number("visionzip", "contextual", contextual, 0)
    n, first = x.shape[1], int(class_token)
    stay = min(n, dominant + first)
    index, _ = ops.select(attention.nan_to_num(-1.0), k=stay, first=first)
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    mask.scatter_(1, index.long(), False)
    kept = ops.compact(x, index).y
    rest = ops.compact(x, mask=mask, capacity=n - stay)
    several = min(contextual, n - stay)
    if not several:
        return kept, index
    keys = ops.compact(metric, mask=mask, capacity=n - stay).y
    at = torch.arange(several, device=x.device) * max(1, (n - stay) // contextual)
    id, _ = ops.assign(keys, keys[:, at])
    # A target weighs nothing, so that what is made in its place is the mean of the others.
    weights = torch.ones(x.shape[0], n - stay, device=x.device)
    weights[:, at] = 0.0
    target = at.int()[id.long().clamp(min=0)].where(id >= 0, -1)
    target[:, at] = -1
    means = ops.compact(rest.y, at.int().expand(len(x), -1).contiguous(), target=target,
                        weights=weights)  # fmt: skip
    more = rest.y[:, at] + means.y * (means.sizes > 0)[..., None]
    return torch.cat([kept, more], 1), torch.cat([index, rest.kept[:, at]], 1)
