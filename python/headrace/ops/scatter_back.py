# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.prune.spec import SCATTER_BACK
from .registry import register


def scatter_back(
    y: Tensor, x: Tensor, index: Tensor, count: Tensor | None = None, *, aligned: bool = False
) -> None:
    """Puts rows back to the places that an index names; all other rows stay as they are.

    y [N, D], [B, N, D] or [B, H, N, D], of any dtype that `compact` takes, is changed: row index[c]
    becomes row c of x [.., K, D], of y's dtype. index (int32 [K], [B, K] or [B, H, K]) ascends; its
    first `count` (int32 [], [B] or [B, H]; all without it) are meant, and rows of x from the count
    on are not read. With `aligned` x has y's shape, and row index[c] of x goes to row index[c] of
    y. Exact; the inverse of `compact`'s gather. Nothing waits for the device.

    Numpy arrays are taken too. Raises TypeError or ValueError naming the argument (on the CPU also
    for an index that does not ascend or is no row, before anything is written; on a GPU such a row
    is left out). Sources: STC (what was computed anew goes into what was cached), VideoLLM-MoD.
    """
    _way()(y, x, index, count, aligned)


_way = register(SCATTER_BACK, lead=2)
