# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.delta.spec import FRAME_DELTA_RULE
from .registry import register


def frame_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    norm: Tensor,
    frames: Tensor,
    indptr: Tensor,
    rows: Tensor,
    *,
    log_decay: Tensor | None = None,
    q_hat: Tensor | None = None,
    k_hat: Tensor | None = None,
    update: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """Gated delta rule over frames of many streams: recurrent over frames, parallel inside one.

    q and k [T, H, K] and v [T, HV, V] (fp32, bf16 or fp16; HV a multiple of H, value head h reads
    query and key head h // (HV // H)) hold the tokens of all frames one after the other: frame f
    is tokens frames[f] to frames[f+1] (int32 [F+1]), stream b is frames indptr[b] to indptr[b+1]
    (int32 [B+1]) and has row rows[b] (int32 [B], all different) of state fp32 [S, HV, K, V] and of
    norm fp32 [S, HV, K]. With K and V the matrices of a frame's rows, each frame does

        state = e^log_decay state,    state += k_hat^T (beta (v - k_hat state))
        norm  = e^log_decay norm,     norm  += k^T (beta (1 - k norm))
        o     = q_hat state / (q norm + eps)

    where every token meets the states as they were before its frame, and reads them as they are
    after it: tokens of a frame see each other, whatever their order. log_decay is fp32 [F, HV],
    natural log, None for no decay; beta fp32 [T, HV]. q_hat and k_hat are the rotated rows, like q
    and k in shape and dtype: rotate them before the call in any scheme (3-D video included); None
    where nothing turns. q and k come in as the denominator wants them, past their nonlinearity and
    scale. A frame without tokens only decays.

    state and norm are updated in place; with `update` False the outputs are the same and the
    states keep their bits, for the steps of a denoiser before its last. K and V are multiples of
    16 up to 512. Gives o [T, HV, V] in q's dtype. On the CPU the bits of a stream depend neither
    on its neighbours, nor on threads, nor on which call a frame came in. Raises TypeError or
    ValueError naming the argument, before anything is written. A GPU looks at frames, indptr and
    rows in debug mode alone, and keeps no state for a row that there is not.

    Source: SANA-Streaming (NVlabs/Sana).
    """
    return _way()(
        q, k, v, beta, state, norm, frames, indptr, rows, log_decay, q_hat, k_hat, update, eps,
    )  # fmt: skip


_way = register(FRAME_DELTA_RULE)
