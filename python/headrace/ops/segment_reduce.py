# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.score.spec import SEGMENT_REDUCE
from .registry import register


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
    _way()(x, ids, total, low, high, unit, count)


_way = register(SEGMENT_REDUCE)
