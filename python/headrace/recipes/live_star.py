# SPDX-License-Identifier: Apache-2.0
"""LiveStar: of old frames those that fit what was said stay longest, and how each segment ended.

Yang et al., LiveStar (2025). Its peak-end memory is not in the released loop; a note on it was
read: frames older than 40 go with a chance in proportion to their perplexity, relative to their
segment, times their age; what was last said of each segment stays. A segment is the stretch of
frames that one caption stood for.

Chosen here: relative to the segment's mean; the largest product of all candidates goes for sure
when it has not gone before. Draws come from the caller, so that a run repeats itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import bad_value
from .common import whole_number


def chances(
    perplexity: Tensor, segment: Tensor, number: Tensor, now: int, *, near: int = 40
) -> Tensor:
    """fp64 [N]: how likely each frame goes at time `now`.

    perplexity [N], of the caption that stood, under each frame; segment and number int64 [N]: whose
    it is, and which frame of the video. 0 for those of the last `near` frames.
    """
    whole_number("live_star", "near", near, 0)
    if not perplexity.shape == segment.shape == number.shape:
        raise bad_value("live_star", "segment", f"{len(perplexity)} numbers", len(segment))
    p = perplexity.double()
    _, own = segment.unique(return_inverse=True)
    many = int(own.max()) + 1 if len(own) else 0
    total = p.new_zeros(many).index_add(0, own, p)
    mean = total / torch.bincount(own, minlength=many)
    age = now - number
    relative = torch.where(mean[own] > 0, p / mean[own], 1.0)
    weight = torch.where(age > near, relative * age, 0.0)
    top = weight.max() if len(weight) else weight.sum()
    return weight / top if top > 0 else weight


def keep(
    perplexity: Tensor, segment: Tensor, number: Tensor, now: int, draws: Tensor, *, near: int = 40
) -> Tensor:
    """bool [N]: frames that stay; one goes when its draw [N], from 0 to below 1, is below its
    chance. The last frame of each segment, where its caption stands, stays.
    """
    goes = draws.double() < chances(perplexity, segment, number, now, near=near)
    ends = torch.ones_like(goes)
    order = number.argsort()
    later = segment[order]
    ends[order[:-1]] = later[1:] != later[:-1]
    return ~goes | ends
