# SPDX-License-Identifier: Apache-2.0
"""FastV: after an early layer, of the image only the tokens that the last one looks at.

Chen et al., ECCV 2024, arXiv 2403.06764, and its code (github.com/pkunlp-icler/FastV): before layer
K = 2 half of the image tokens go, by the attention that the last token of the prompt gave them in
the layer before, the mean over all heads; all other tokens stay. Survivors keep their positions.
"""

from __future__ import annotations

from torch import Tensor, tensor

from .. import ops
from ..errors import bad_value
from .common import Kept

LAYER = 2


def score(q: Tensor, k: Tensor) -> Tensor:
    """fp32 [B, N]: attention of the last query, mean over the heads.

    q [B, Hq, W, D], of which the last row counts; k [B, Hkv, N, D], up to the same token.
    """
    return ops.attention_mass(q[:, :, -1:], k).mean(1)


def keep(scores: Tensor, image: tuple[int, int], *, drop: float = 0.5) -> Kept:
    """int32 [B, K] and counts [B], of scores [B, N]: all tokens but the worst of the image.

    image: where it begins and ends. round((1 - drop) * length) of its tokens stay.
    """
    n, (begin, end) = scores.shape[-1], image
    if not 0 <= begin <= end <= n:
        raise bad_value("fastv", "image", f"begin and end within {n} tokens", image)
    if not 0 <= drop <= 1:
        raise bad_value("fastv", "drop", "0 to 1", drop)
    others = tensor([[0, begin], [end, n]], dtype=tensor(0).int().dtype, device=scores.device)
    room = n - (end - begin) + round((end - begin) * (1 - drop))
    return ops.select(scores, k=room, forced=others)
