# SPDX-License-Identifier: Apache-2.0
"""AdaKV: one budget for all heads of a layer; those whose scores are flat get more.

Feng et al., arXiv 2407.11550. A fifth of its even share is safe for every head, as in kvpress; the
authors' code mixes a fifth of the even share with what the heads would get instead.
"""

from __future__ import annotations

from torch import Tensor

from .. import ops
from .common import Kept, whole_number


def keep(
    score: Tensor,
    budget: int,
    *,
    safeguard: float = 0.2,
    last: int = 0,
    lengths: Tensor | None = None,
) -> Kept:
    """The `budget` times heads best of score [B, H, N] over all heads, such as snap_kv's.

    Of every head the `last` ones and the best int(safeguard * budget) in any case; counts [B, H]
    differ by head.
    """
    whole_number("ada_kv", "budget", budget, 0)
    whole_number("ada_kv", "safeguard", int(safeguard * budget), 0)
    return ops.select(
        score,
        "flat",
        k=budget * score.shape[1],
        floor=int(safeguard * budget),
        last=last,
        lengths=lengths,
    )
