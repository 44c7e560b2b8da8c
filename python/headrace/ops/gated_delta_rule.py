# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.delta.spec import GATED_DELTA_RULE
from .registry import register


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    indptr: Tensor,
    rows: Tensor,
    *,
    scale: float | None = None,
    normalize: bool = True,
) -> Tensor:
    """The gated delta rule over many streams, each with a state that stays between calls.

    q, k [T, H, D] and v [T, HV, V] in fp32, bf16 or fp16, HV a multiple of H (value head j uses
    query head j // (HV / H)), D and V multiples of 16 up to 256. Tokens indptr[b]:indptr[b + 1]
    (int32 [B + 1]) belong to stream b, whose state is state[rows[b]] (fp32 [S, HV, D, V], changed
    in place; rows int32 [B], all different). Token t, with decay a = exp(log_decay[t]) and strength
    beta[t] (fp32 [T, HV]):

        S = a S;   S = S + k (beta (v - S^T k))^T;   o = scale S^T q

    normalize divides q and k by their lengths, sqrt(sum of squares + 1e-6), first. scale defaults
    to D ** -0.5. Gives o [T, HV, V] in v's dtype. On the CPU the bits of a stream depend neither on
    the other streams nor on how its tokens are cut into calls. Raises TypeError, ValueError or
    NotImplementedError naming the argument, before anything is written. A GPU looks at indptr and
    rows in debug mode alone, and keeps no state for a row that there is not.

    Source: Gated Delta Networks (Yang et al., 2024).
    """
    return _way()(q, k, v, log_decay, beta, state, indptr, rows, scale, normalize)


_way = register(GATED_DELTA_RULE)
