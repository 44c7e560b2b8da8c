# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor, get_num_threads

from .. import _C
from ..kernels.prune.spec import SCATTER_BACK
from .compact import STILL, addresses, counts_of, options, rows_of, spread
from .registry import UNUSUAL, alone, call, register


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
    if y.ndim == x.ndim == 2 and _alone(y, x, index, count, aligned) is not UNUSUAL:
        return
    op = "scatter_back"
    rows = rows_of(op, y, "y"), rows_of(op, x)
    call(op, *rows, spread(index, 3), counts_of(count), aligned=aligned)


def _cpu(bound, axes, outs):
    x, y = bound["x"], bound["y"]
    _C.scatter_back(
        x.data_ptr(),
        x.stride()[:3],
        y.data_ptr(),
        y.stride()[:3],
        *options(bound),
        [axes[n] for n in "BHNKD"],
        x.element_size(),
        bound["aligned"],
        get_num_threads(),
    )


def _cpu_alone(bound, axes, outs):
    x, y = bound["x"], bound["y"]
    _C.scatter_back(
        x.data_ptr(),
        (0, 0, x.stride(0)),
        y.data_ptr(),
        (0, 0, y.stride(0)),
        addresses(bound),
        STILL,
        (1, 1, axes["N"], axes["K"], axes["D"]),
        x.element_size(),
        bound["aligned"],
        get_num_threads(),
    )


register(SCATTER_BACK, _cpu)
_alone = alone(SCATTER_BACK, _cpu_alone)
