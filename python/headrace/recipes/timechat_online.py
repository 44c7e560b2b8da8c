# SPDX-License-Identifier: Apache-2.0
"""TimeChat-Online: differential token dropping (DTD) of what repeats the frame before.

Yao et al., arXiv 2504.17343, and its code (github.com/yaolinli/TimeChat-Online). The first frame is
whole; a token is dropped whose cosine with the token in its place one frame earlier is above the
threshold (0.5 in the examples, 0.25 in the demo, which drops more), or whose pixels, from 0 to 1,
differ by less than the threshold on average. A token of Qwen2.5-VL is 28 x 28 pixels of two frames;
the code compares the second of a pair with the first of the pair before. Instead of a threshold, a
share of each frame's tokens may be dropped, those most alike.

The reference is the frame before, dropped or not; `filters.LastKept` is the form with a bound.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import ops
from ..errors import bad_value
from .common import Kept


def keep(x: Tensor, *, threshold: float = 0.5, share: float | None = None) -> Kept:
    """What features x [T, P, D] of T frames keep of P tokens: int32 [T, P or less], counts [T].

    A stream that goes on hands in its last frame again as the first, and leaves that out. share:
    how much of each frame to drop, whatever the threshold.
    """
    near = ops.similarity(x[1:], x[:-1], "cos").nan_to_num(-torch.inf)
    return _kept(pad(near, (0, 0, 1, 0), value=-torch.inf)[: len(x)], threshold, share)


def keep_pixels(x: Tensor, threshold: float, *, side: int = 28, share: float | None = None) -> Kept:
    """The same by pixels: x [2 T, H, W, C], T pairs of frames of patches of side x side pixels.

    uint8, or floats from 0 to 1. threshold: mean absolute difference, from 0 to 1.
    """
    if x.ndim != 4 or x.shape[0] % 2 or side < 1 or x.shape[1] % side or x.shape[2] % side:
        wanted = f"[2 T, H, W, C], whole patches of {side}"
        raise bad_value("timechat_online", "x", wanted, tuple(x.shape))
    last, first = x[3::2], x[:-2:2]
    off = ops.similarity(last, first, "l1", patch_height=side, patch_width=side).flatten(1)
    off = off / 255 if x.dtype == torch.uint8 else off
    off = off.nan_to_num(torch.inf, torch.inf)
    return _kept(pad(-off, (0, 0, 1, 0), value=-torch.inf)[: len(x) // 2], -threshold, share)


def dropped(kept: Kept, tokens: int) -> Tensor:
    """fp32 [T]: the part of the `tokens` of each frame that is dropped. A cut is a valley of it."""
    return 1 - kept[1] / max(tokens, 1)


def _kept(near: Tensor, threshold: float, share: float | None) -> Kept:
    """By how near [T, P] each token is to its reference; -infinity where there is none."""
    if share is None:
        return ops.select(near, "threshold", threshold=threshold, lowest=True)
    if not 0 <= share <= 1:
        raise bad_value("timechat_online", "share", "0 to 1", share)
    tokens = near.shape[1]
    budget = torch.full((len(near),), tokens - int(tokens * share), device=near.device).int()
    budget[:1] = tokens
    return ops.select(near, budget=budget, lowest=True)
