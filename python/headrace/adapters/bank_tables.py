# SPDX-License-Identifier: Apache-2.0
"""The tables that a bank's sites share, in buffers that never move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .bank_rows import Extent
from .route import LoraRoute

FREE = -1
"""Rank of a slot whose rows are not there: the kernel refuses to read it."""


class Tables:
    """Which rank rows a slot has, and which slot a token; every layer reads the same.

    rows int32 [S * R]: slot s has R places for the numbers of its rank rows. row_indptr int32
    [S + 1]. The ranks [S, J] of all sites lie in one run, so that a slot changes in one go; width:
    ranks of a slot.
    """

    def __init__(
        self, slots: int, max_rank: int, slices: Sequence[int], device: torch.device
    ) -> None:
        self.device, self.slots, self.max_rank, self.width = device, slots, max_rank, sum(slices)
        self.rows = torch.full((slots * max_rank,), -1, dtype=torch.int32, device=device)
        starts = torch.arange(slots + 1, dtype=torch.int32, device=device)
        self.row_indptr = starts * max_rank
        self._ranks = torch.full((slots * sum(slices),), FREE, dtype=torch.int32, device=device)
        self.ranks: list[Tensor] = []  # [S, J] per site
        offsets: list[int] = []
        strides: list[int] = []
        at = 0
        for j in slices:
            self.ranks.append(self._ranks[at : at + slots * j].view(slots, j))
            offsets += range(at, at + j)
            strides += [j] * j
            at += slots * j
        self._offsets = torch.tensor(offsets, device=device)
        self._strides = torch.tensor(strides, device=device)
        self._route = LoraRoute(0, device=device)

    def set_rows(self, slot: int, extents: Sequence[Extent]) -> None:
        """The slot has the rows of `extents`."""
        numbers = [row for first, count in extents for row in range(first, first + count)]
        row = self.rows[slot * self.max_rank : (slot + 1) * self.max_rank]
        row[len(numbers) :] = -1
        row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)

    def set_ranks(self, slot: int, ranks: Sequence[int]) -> None:
        """The slot has these ranks, site by site, slice by slice."""
        places = self._offsets + slot * self._strides
        self._ranks[places] = torch.tensor(ranks, dtype=torch.int32, device=self.device)

    def tokens(self, slots: Sequence[int], counts: Sequence[int]) -> LoraRoute:
        """The route of a step: each of slots for as many tokens as counts say. Until the next."""
        made = torch.tensor(slots, dtype=torch.int32).repeat_interleave(
            torch.tensor(counts, dtype=torch.int64), output_size=sum(counts)
        )
        if len(made) > self._route.tokens:
            self._route = LoraRoute(1 << (len(made) - 1).bit_length(), device=self.device)
        used = any(s >= 0 and n for s, n in zip(slots, counts, strict=True))
        return self._route.set(made.to(self.device), idle=not used)
