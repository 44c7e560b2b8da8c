# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor, get_num_threads, is_grad_enabled

from .. import _C
from ..kernels.score.spec import SEGMENT_REDUCE, STATES
from .registry import DTYPE_CODE, address, call, direct, register, wrote


def segment_reduce(
    x: Tensor,
    ids: Tensor,
    total: Tensor | None = None,
    low: Tensor | None = None,
    high: Tensor | None = None,
    unit: Tensor | None = None,
    count: Tensor | None = None,
) -> None:
    """Adds rows to the summaries of their segments, in place, those that are given.

    x [T, H, D] (fp32, bf16 or fp16): rows, such as the keys of T tokens. ids int32 [T]: the segment
    of each (a page, a block, a cluster, a frame); a row whose id is not in 0..S-1 is left out, and
    not read. Each of S segments and H heads has

    - total fp32 [S, H, D]: the sum of its rows; over count it is their mean;
    - low and high [S, H, D] (fp32 or the dtype of x): the least and largest value of every element
      (of a NaN it is not said what becomes);
    - unit fp32 [S, H, D]: the sum of its rows at length 1; rows of length 0 add nothing;
    - count int32 [S]: how many rows.

    To start, sums and counts are 0, low is +infinity, high -infinity. A segment adds its rows in
    order to what is there, so it is the same to the bit whether they come in one call or in many.
    Summaries of two parts of a segment merge by adding sums and counts, and by torch.minimum and
    torch.maximum. Sums are fp32. Gives None. Numpy arrays are taken too. Raises TypeError or
    ValueError naming the argument. Sources: ReKV and InfLLM (means), Quest (bounds), KeyDiff and
    InfiniPot-V (unit sums).
    """
    if type(x) is Tensor and direct():
        states, recorded = (total, low, high, unit, count), is_grad_enabled()
        if _C.segment_plain(x, ids, states, recorded, get_num_threads()):
            if recorded:
                wrote(*(s for s in states if s is not None))
            return
    call("segment_reduce", x, ids, total, low, high, unit, count)


def _cpu(bound, axes, outs):
    x, ids, count = bound["x"], bound["ids"], bound["count"]
    states = [bound[n] for n in STATES]
    bounds = [DTYPE_CODE[torch.float32 if s is None else s.dtype] for s in states[1:3]]
    _C.segment_reduce(
        x.data_ptr(),
        x.stride()[:2],
        ids.data_ptr(),
        ids.stride(0),
        (axes["T"], axes["H"], axes["D"], axes["S"]),
        DTYPE_CODE[x.dtype],
        [address(s) for s in states],
        [(0, 0) if s is None else s.stride()[:2] for s in states],
        (bounds[0], bounds[1]),
        address(count),
        0 if count is None else count.stride(0),
        get_num_threads(),
    )


register(SEGMENT_REDUCE, _cpu)
