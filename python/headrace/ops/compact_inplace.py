# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor, get_num_threads, is_grad_enabled

from .. import _C
from ..kernels.prune.spec import COMPACT_INPLACE
from .compact import counts_of, options, rows_of, spread
from .registry import call, direct, register, wrote


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
    if count is None and direct():
        recorded = is_grad_enabled()
        if _C.compact_inplace_rows(x, index, recorded, get_num_threads()):
            if recorded:
                wrote(x)
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


register(COMPACT_INPLACE, _cpu)
