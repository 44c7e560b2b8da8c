# SPDX-License-Identifier: Apache-2.0
"""Which places of a frame are kept: one mask, in the forms that its users need."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import ops
from ..errors import bad_value


@dataclass(frozen=True)
class Decision:
    """What a filter keeps of a frame, for every stream of a batch or for one.

    index: int32 [B, K] or [K], ascending places, -1 behind the count. count: int32 [B] or []. mask:
    bool [B, N] or [N], the same. waiting: int32 as count, how many more would have been kept if the
    capacity K had allowed it; they come again. grid: rows and columns of the places, where the
    frame has any. Everything is on the frame's device, and nothing waits for it.
    """

    index: Tensor
    count: Tensor
    mask: Tensor
    waiting: Tensor
    grid: tuple[int, int] | None = None

    def dropped(self) -> Tensor:
        """fp32 as count: the share of places that is dropped, from 0 to 1."""
        return 1 - self.count / max(self.mask.shape[-1], 1)

    def rows(self, x: Tensor) -> Tensor:
        """What is kept of x [.., N, D], any features of the same places: [.., K, D], then 0."""
        return ops.compact(x, self.index, self.count).y

    def put(self, y: Tensor, rows: Tensor) -> None:
        """Puts rows [.., K, D], as `rows` gives them, to their places in y [.., N, D]."""
        ops.scatter_back(y, rows, self.index, self.count)

    def fitted(self) -> Decision:
        """The same, on the CPU with a capacity of what the fullest row keeps: work that goes by
        the capacity then goes by what is kept. Elsewhere nobody looks, and it stays."""
        return replace(self, index=fitting(self.index, self.count))

    def merged(self, high: int, wide: int, capacity: int | None = None) -> Decision:
        """The decision over groups of `high` x `wide` places, of which each is kept as soon as one
        of its places is: what a patch merger makes one token of. Groups at the right and the lower
        edge may be short. `capacity` as the filter's; all groups fit without it.

        Raises ValueError where the places have no grid, or the group has no place.
        """
        if self.grid is None:
            raise bad_value("merged", "grid", "a decision over a grid", "None")
        for name, size in (("high", high), ("wide", wide)):
            if size < 1:
                raise bad_value("merged", name, "1 or more", size)
        rows, columns = self.grid
        lead = self.mask.shape[:-1]
        edge = (0, -columns % wide, 0, -rows % high)
        cells = pad(self.mask.view(*lead, rows, columns), edge)
        down, across = cells.shape[-2] // high, cells.shape[-1] // wide
        groups = cells.view(*lead, down, high, across, wide).any(-1).any(-2).flatten(-2)
        return decide(groups.float(), 0.5, False, capacity, (down, across))


def fitting(index: Tensor, count: Tensor) -> Tensor:
    """An index [.., K] cut behind its longest row, on the CPU, where to look at counts is free."""
    if index.device.type != "cpu" or not count.numel():
        return index
    return index[..., : int(count.max())].contiguous()


def decide(
    score: Tensor,
    threshold: float,
    lowest: bool,
    capacity: int | None,
    grid: tuple[int, int] | None,
) -> Decision:
    """Keeps places of at least the threshold (with `lowest`, of at most), the furthest first."""
    places = score.shape[-1]
    index, count = ops.select(
        score, "threshold", threshold=threshold, lowest=lowest,
        k=capacity, capacity=places if capacity is None else min(capacity, places),
    )  # fmt: skip
    at = index.long().where(index >= 0, places)
    mask = pad(score.new_zeros(score.shape, dtype=torch.bool), (0, 1)).scatter(-1, at, True)[
        ..., :-1
    ]
    wanted = ((score <= threshold) if lowest else (score >= threshold)).sum(-1)
    return Decision(index, count, mask, (wanted - count).int(), grid)
