# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.prune.spec import COMPACT_INPLACE
from .registry import register


def compact_inplace(x: Tensor, index: Tensor, count: Tensor | None = None) -> None:
    """Moves the rows that are kept to the front of their own tensor, in their order.

    x [N, D], [B, N, D] or [B, H, N, D], of any dtype that `compact` takes, is changed: row c
    becomes row index[c]. index (int32 [K], [B, K] or [B, H, K]) ascends; its first `count` (int32
    [], [B] or [B, H]; all without it) are meant. Rows from the count on stay as they are. Exact.
    Nothing waits for the device, and nothing is allocated.

    Numpy arrays are taken too. Raises TypeError or ValueError naming the argument (on the CPU also
    for an index that does not ascend or is no row, before anything moves; on a GPU such a row does
    not move).
    """
    _way()(x, index, count)


_way = register(COMPACT_INPLACE, lead=2)
