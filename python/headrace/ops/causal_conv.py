# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..errors import bad_value
from ..kernels.causal_conv.spec import SPEC
from .registry import register


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    indptr: Tensor,
    rows: Tensor,
    *,
    activation: str | None = "silu",
) -> Tensor:
    """Depthwise causal convolution over time of many streams, each with its last inputs as state.

    x [T, C] (fp32, bf16 or fp16) holds the streams one after the other, stream b at tokens
    indptr[b] to indptr[b+1] (int32 [B+1], from 0 to T; it may have none). weight fp32 [C, W], with
    W of 1 to 16, and bias fp32 [C] or None: y[t] = act(bias + sum_j weight[:, W-1-j] x[t-j]), act
    SiLU or none. state [S, C, W-1] in x's dtype holds, oldest first, the inputs before this call;
    stream b uses row rows[b] (int32 [B], all different), which is updated in place. Zeros are the
    state of a stream that begins. Gives y [T, C] in x's dtype. The bits of y and of the state do
    not depend on how a stream came in chunks. Raises TypeError or ValueError naming the argument,
    before anything is written. A GPU looks at indptr and rows in debug mode alone, and keeps no
    state for a row that there is not.

    Source: the short convolution of Mamba (Gu and Dao, 2023).
    """
    if activation not in ("silu", None):
        raise bad_value("causal_conv", "activation", "silu or None", activation)
    return _way()(x, weight, bias, state, indptr, rows, activation == "silu")


_way = register(SPEC)
