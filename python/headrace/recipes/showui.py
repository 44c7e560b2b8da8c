# SPDX-License-Identifier: Apache-2.0
"""ShowUI: of every patch of screen that looks the same all over, some of its tokens.

Lin et al., CVPR 2025, arXiv 2411.17465, and its code (github.com/showlab/ShowUI): neighbours to the
right and below whose pixels differ by a norm of less than 1 are one component; in training a share
of each component's tokens (here half) is skipped, at even distances, singles and one of each stay.
A patch is 28 x 28 normalised pixels, the image given twice as a pair of frames. The code finds
components with a loop over patches; here labels spread along all edges at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .common import Kept


def components(x: Tensor, *, threshold: float = 1.0) -> Tensor:
    """int64 [F, H, W]: of every patch of x [F, H, W, D] the lowest place, in all the frames, of the
    patches that it is connected with; frames are not connected.

    Waits for the device, once a round; rounds grow as the logarithm of the longest way.
    """
    frames, high, wide = x.shape[:3]
    place = torch.arange(frames * high * wide, device=x.device).view(frames, high, wide)
    edges = []
    for axis, size in ((1, high), (2, wide)):
        if size > 1:
            ends = [t.narrow(axis, i, size - 1) for i in (0, 1) for t in (x, place)]
            same = ops.similarity(ends[0], ends[2], "l2") < threshold**2
            edges.append(torch.stack([ends[1][same], ends[3][same]]))
    label = place.flatten()
    if not edges:
        return place
    one, other = torch.cat(edges, 1)
    while True:
        least = torch.minimum(label[one], label[other])
        # To the ends of an edge, and to what they hang on: whole components join at a time.
        new = label.clone()
        for to in (one, other, label[one], label[other]):
            new.scatter_reduce_(0, to, least, "amin")
        new = new[new]
        if torch.equal(new, label):
            return label.view(frames, high, wide)
        label = new


def keep(label: Tensor, *, skip: float = 0.5) -> Kept:
    """int32 [N], ascending, and their number: the tokens that stay, of labels [...] of N places.

    Of a component of n, max(1, n - round(skip * n)) at even distances, the first and (if two or
    more) the last among them: the i-th of m is number i * (n - 1) / (m - 1), rounded down, where
    the code goes by fp32 and may be one place off.
    """
    if not 0 <= skip <= 1:
        raise bad_value("showui", "skip", "0 to 1", skip)
    flat = label.flatten()
    if not len(flat):
        return ops.select(flat.float(), "threshold", threshold=0.5)
    order = flat.argsort(stable=True)
    _, back, sizes = flat.unique(return_inverse=True, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    n = sizes[back]
    number = torch.empty_like(flat)
    number[order] = torch.arange(len(flat), device=flat.device)
    number -= starts[back]
    m = (n - (skip * n.double()).round().long()).clamp(min=1)
    steps, gaps = (n - 1).clamp(min=1), (m - 1).clamp(min=1)
    nearest = (number * gaps + steps - 1) // steps  # the first i whose place is not before it
    stays = (m > 1) & (nearest * steps // gaps == number) | (number == 0)
    return ops.select(stays.float(), "threshold", threshold=0.5)
