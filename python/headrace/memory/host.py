# SPDX-License-Identifier: Apache-2.0
"""Blocks in host memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .layout import Layout

SLAB = 64 << 20
"""Bytes of host memory taken at a time."""


class Host:
    """Host memory for `capacity` blocks, in slabs taken as they fill; pinned where CUDA is."""

    def __init__(self, layout: Layout, capacity: int) -> None:
        self.layout, self.capacity = layout, capacity
        self.per_slab = max(1, min(capacity, SLAB // layout.block_bytes))
        self._slabs: list[Tensor] = []
        self._free: list[int] = []
        self.pinned = torch.cuda.is_available()

    @property
    def nbytes(self) -> int:
        return sum(slab.nbytes for slab in self._slabs)

    def take(self) -> int:
        """A free slot; -1 when all are taken."""
        if not self._free:
            first = len(self._slabs) * self.per_slab
            stop = min(first + self.per_slab, self.capacity)
            if first >= stop:
                return -1
            self._slabs.append(self.layout.empty(stop - first, pinned=self.pinned))
            self._free = list(range(stop - 1, first - 1, -1))
        return self._free.pop()

    def free(self, slot: int) -> None:
        self._free.append(slot)

    def addresses(self, slots: np.ndarray, layers: np.ndarray) -> np.ndarray:
        """int64 [n]: where these layers of blocks begin."""
        slab, at = np.divmod(slots, self.per_slab)
        starts = np.array([slab.data_ptr() for slab in self._slabs], np.int64)
        layout = self.layout
        return starts[slab] + at * layout.block_bytes + layers * layout.part_bytes

    def __getitem__(self, slot: int) -> Tensor:
        """uint8 [layers, part_bytes]."""
        return self._slabs[slot // self.per_slab][slot % self.per_slab]
