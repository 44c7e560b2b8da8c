# SPDX-License-Identifier: Apache-2.0
"""EVS: an exact number of a clip's tokens, those that differ most from the frame before.

NVIDIA's efficient video sampling, github.com/vllm-project/vllm (`multimodal/evs.py`).
The form of TimeChat-Online's dropping that is in production. Needs the whole clip; the count
follows from its size alone, so that room can be made before anything is seen. Survivors keep the
positions they had.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import ops
from ..errors import bad_value
from .common import Kept, whole_number


def retained(tokens: int, frames: int, rate: float) -> int:
    """How many of `frames` x `tokens` are kept at a pruning rate: a frame's worth at least."""
    if not 0 <= rate < 1:
        raise bad_value("evs", "rate", "0 to less than 1", rate)
    return max(tokens if frames else 0, int(tokens * frames * (1 - rate)))


def score(x: Tensor) -> Tensor:
    """fp32 [T, P] of features x [T, P, D]: one less the cosine; 255 in the first frame.

    NaN is as unlike as can be, +infinity.
    """
    off = 1 - ops.similarity(x[1:], x[:-1], "cos")
    return pad(off.nan_to_num(torch.finfo(off.dtype).max), (0, 0, 1, 0), value=255.0)[: len(x)]


def keep(x: Tensor, rate: float) -> Kept:
    """int32 [K], ascending, of the T * P tokens of a clip x [T, P, D], and their number.

    rate: of pruning; there is no default in vLLM, where it is `video_pruning_rate`.
    """
    count = retained(x.shape[1], x.shape[0], rate)
    return ops.select(score(x).flatten(), k=count, first=min(x.shape[1], count))


def positions(
    index: Tensor, tokens: tuple[int, int], *, per_frame: float = 1.0, base: int = 0
) -> Tensor:
    """int64 [K, 3]: time, row and column of what is kept, as if nothing had been dropped.

    index [K] as `keep` gives it; tokens: rows and columns of a frame. per_frame: positions that a
    frame takes (tokens per second times seconds per frame), rounded down after the product. base:
    the position after what stands before the video; what follows it begins at base + columns.
    """
    whole_number("evs", "tokens", min(tokens), 1)
    at, (rows, columns) = index.long(), tokens
    frame = at.div(rows * columns, rounding_mode="floor")
    place = at - frame * rows * columns
    time = (frame * per_frame).long()
    row = place.div(columns, rounding_mode="floor")
    return torch.stack([time, row, place - row * columns], -1) + base
