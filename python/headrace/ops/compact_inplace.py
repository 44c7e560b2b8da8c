# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor, get_num_threads

from .. import _C
from ..kernels.prune.spec import COMPACT_INPLACE
from .compact import STILL, addresses, counts_of, options, rows_of, spread
from .registry import UNUSUAL, alone, call, register


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
    if x.ndim == 2 and _alone(x, index, count) is not UNUSUAL:
        return
    call("compact_inplace", rows_of("compact_inplace", x), spread(index, 3), counts_of(count))


def _cpu(bound, axes, outs):
    x = bound["x"]
    _C.compact_inplace(
        x.data_ptr(),
        x.stride()[:3],
        *options(bound),
        [axes[n] for n in "BHNKD"],
        x.element_size(),
        get_num_threads(),
    )


def _cpu_alone(bound, axes, outs):
    x = bound["x"]
    _C.compact_inplace(
        x.data_ptr(),
        (0, 0, x.stride(0)),
        addresses(bound),
        STILL,
        (1, 1, axes["N"], axes["K"], axes["D"]),
        x.element_size(),
        get_num_threads(),
    )


register(COMPACT_INPLACE, _cpu)
_alone = alone(COMPACT_INPLACE, _cpu_alone)
