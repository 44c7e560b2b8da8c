# SPDX-License-Identifier: Apache-2.0
"""VideoLLM-MoD: in every other layer only a fifth of each frame's tokens is computed.

Wu et al., NeurIPS 2024, arXiv 2408.16730; its text was read in part, code is not published. A
learned score per layer (LayerExpert, one linear map) ranks the vision tokens of each frame; the
best 20% go through attention and MLP, the others pass unchanged, keep their places, and have no
keys in that layer. Chosen here: int(ratio * tokens) of a frame, one at least. Whether
the score also scales what a layer adds, as in mixture of depths, is not in what was read; here it
does not.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .. import ops
from ..errors import bad_value
from .common import Kept


def score(x: Tensor, expert: Tensor) -> Tensor:
    """fp32 [F, P] of tokens x [F, P, W] by a layer's expert [W]."""
    return (x.float() @ expert.float()).contiguous()


def keep(scores: Tensor, *, ratio: float = 0.2) -> Kept:
    """int32 [F, K] and counts [F]: the best of each frame's tokens, by scores [F, P]."""
    if not 0 <= ratio <= 1:
        raise bad_value("video_llm_mod", "ratio", "0 to 1", ratio)
    tokens = scores.shape[-1]
    return ops.select(scores, k=min(tokens, max(1, int(ratio * tokens))))


def through(x: Tensor, kept: Kept, layer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x [B, N, W], of which layer(rows [B, K, W], index int32 [B, K]) replaces the rows kept.

    The other rows have the bits they had.
    """
    index, count = kept
    y = x.clone()
    ops.scatter_back(y, layer(ops.compact(x, index, count).y, index), index, count)
    return y
