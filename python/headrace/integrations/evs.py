# SPDX-License-Identifier: Apache-2.0
"""What is kept of a video, as the mask that vLLM's video pipeline takes.

Its models that prune (`--video-pruning-rate`) ask for a bool mask over the tokens of a whole clip,
frame by frame, row by row, whose count follows from the size and the rate alone, for placeholders
are counted before anything is seen. `retention_mask` has the arguments of its
`vllm.multimodal.evs.compute_retention_mask` and, alone, gives the same; what a gate kept, if given,
comes first. vLLM is not imported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from ..filters import Decision
from ..recipes import evs


def retention_mask(
    video_embeds: Tensor,
    video_size_thw: Tensor | tuple[int, int, int],
    spatial_merge_size: int,
    q: float,
    *,
    wanted: Tensor | None = None,
) -> Tensor:
    """Which tokens of a clip are kept, bool [T * h * w], h and w after the merge.

    video_embeds [T * h * w, D], features behind the merger. video_size_thw: frames, rows and
    columns before the merge. q: pruning rate, 0 to less than 1. wanted bool [T, h * w]: what a gate
    kept of every frame (`merged` makes it of decisions over patches); of exactly
    max(h * w, int(T * h * w * (1 - q))) places the first frame's come first, then those wanted,
    then those that differ most from the frame before, the lowest index first among equals.
    Raises ValueError naming the argument.
    """
    frames, high, wide = (int(n) for n in video_size_thw)
    if spatial_merge_size < 1:
        raise bad_value("retention_mask", "spatial_merge_size", "1 or more", spatial_merge_size)
    places = (high // spatial_merge_size) * (wide // spatial_merge_size)
    if video_embeds.ndim != 2 or len(video_embeds) != frames * places:
        got = list(video_embeds.shape)
        raise bad_value("retention_mask", "video_embeds", f"[{frames * places}, D]", got)
    count = evs.retained(places, frames, q)
    score = evs.score(video_embeds.view(frames, places, -1)).flatten()
    if wanted is not None:
        if wanted.dtype != torch.bool or tuple(wanted.shape) != (frames, places):
            told = f"{wanted.dtype} {list(wanted.shape)}"
            raise bad_value("retention_mask", "wanted", f"bool [{frames}, {places}]", told)
        score = score.clamp(max=255) + 512 * wanted.flatten()
    index, _ = ops.select(score, k=count, first=min(places, count))
    mask = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    mask[index.long()] = True
    return mask


def merged(decisions: list[Decision], spatial_merge_size: int) -> Tensor:
    """bool [T, h * w] of a clip's decisions over a grid of patches: a merged token is wanted as
    soon as one of its patches is. ValueError where a decision has no grid."""
    by = spatial_merge_size
    return torch.stack([decision.merged(by, by).mask for decision in decisions])
