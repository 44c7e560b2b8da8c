# SPDX-License-Identifier: Apache-2.0
"""Where in the frame before a patch came from, and what a patch becomes if that goes on.

Block matching over a square of shifts, on means of pixels: how well each shift of the frame before
explains a patch of this one. The blend of this frame moved by the same shifts, one weight each, is
what the patch becomes (as in convolutional dynamic neural advection, arXiv 1605.07157, with a
kernel for every patch).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FINE = 2
"""Steps of a shift in a cell of a thumb, along a side."""

STEEP = 5.0
"""Cost of a shift that is ruled out: as many e-folds as levels of 255 have."""


class Motion(NamedTuple):
    """Of n patches. costs fp32 [n, 4 K]: of the K shifts, as `costs` makes them: of this frame,
    then of the one before it, for what moves goes on. windows fp32 [n, 3, S, S]: the patch and what
    is around it, up to the farthest shift, as means of a cell about every step."""

    costs: Tensor
    windows: Tensor

    def rows(self, index: Tensor) -> Motion:
        """Those of some patches."""
        return Motion(self.costs[index], self.windows[index])


def reduce(frames: Tensor, step: int) -> Tensor:
    """Frames uint8 [F, H, W, 3] as means of step x step pixels, fp32 [F, 3, H/step, W/step], of a
    scale from -1 to 1."""
    x = frames.float()
    if step > 1:  # rows, then columns: far quicker than pooling where colours are innermost
        x = torch.stack([x[:, i::step] for i in range(step)]).sum(0)
        x = torch.stack([x[:, :, i::step] for i in range(step)]).sum(0)
    return x.movedim(-1, 1).contiguous().mul_(2 / (255 * step * step)).sub_(1)


def thumbs(now: Tensor, side: int, thumb: int) -> Tensor:
    """Thumbs [F, N, thumb * thumb * 3] of all patches of `side` steps, of reduced frames."""
    x = F.avg_pool2d(now, side // thumb)
    x = x.unflatten(-1, (-1, thumb)).unflatten(-3, (-1, thumb))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def costs(before: Tensor, now: Tensor, side: int, reach: int) -> Tensor:
    """[N, 2 K] of all N patches of `side` steps, of reduced frames [3, h, w]: of every shift, row
    by row, the logarithm of the mean absolute difference in levels of 255, plus 1, less its mean
    over shifts; of the patch, then of it and its 8 neighbours."""
    x, y = (frame.mean(0) for frame in (before, now))
    x = F.pad(x[None, None], (reach,) * 4, mode="replicate")[0, 0]
    (high, wide), span = y.shape, 2 * reach + 1
    rows = []
    for top in range(span):  # a row of shifts at a time stays in the cache
        shifted = x[top : top + high].unfold(1, wide, 1).transpose(0, 1)
        far = (shifted - y).abs_().unflatten(1, (-1, side)).sum(2)
        rows.append(far.unflatten(2, (-1, side)).sum(3))
    own = torch.cat(rows).mul_(127.5 / side**2)
    around = F.pad(own[:, None], (1,) * 4, mode="replicate")[:, 0]
    around = around[:, :-2] + around[:, 1:-1] + around[:, 2:]
    around = (around[:, :, :-2] + around[:, :, 1:-1] + around[:, :, 2:]) / 9
    found = torch.stack([own, around]).flatten(2).log1p_()
    return (found - found.mean(1, keepdim=True)).flatten(0, 1).T


def still(count: int, reach: int, like: Tensor) -> Tensor:
    """Costs [count, 2 K] of patches that cannot have moved."""
    shifts = (2 * reach + 1) ** 2
    found = like.new_full((count, 2, shifts), STEEP)
    found[..., shifts // 2] = 0
    return found.flatten(1)


def windows(now: Tensor, side: int, reach: int, index: Tensor) -> Tensor:
    """[n, 3, S, S] of the patches that index int64 [n] names, of a reduced frame [3, h, w]."""
    x = F.pad(now[None], (reach,) * 4, mode="replicate")
    span = side + 2 * reach + 1 - FINE
    x = F.avg_pool2d(x, FINE, 1)[0].unfold(1, span, side).unfold(2, span, side)
    columns = x.shape[2]
    return x[:, index // columns, index % columns].transpose(0, 1)


def moved(windows: Tensor, weights: Tensor, reach: int) -> Tensor:
    """How far the blend of shifts is from the patch, as thumbs [n, thumb * thumb * 3], of weights
    [n, K] that sum to 1."""
    span = 2 * reach + 1
    still = torch.zeros(span * span, device=weights.device, dtype=weights.dtype)
    still[len(still) // 2] = 1
    kernels = (weights - still).view(-1, 1, span, span)
    x = windows.transpose(0, 1)  # a group for each patch, with a kernel of its own
    return F.conv2d(x, kernels, groups=len(kernels), stride=FINE).permute(1, 2, 3, 0).flatten(1)
