# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..errors import bad_value
from ..kernels.linear_attention.spec import SPEC
from .registry import register

FEATURES = {"none": 0, "relu": 1, "elu1": 2}


def linear_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    state: Tensor,
    norm: Tensor | None,
    indptr: Tensor,
    rows: Tensor,
    *,
    log_decay: Tensor | None = None,
    inv_freq: Tensor | None = None,
    offset: Tensor | None = None,
    count: Tensor | None = None,
    feature: str = "relu",
    raw: bool = False,
    scale: float = 1.0,
    eps: float = 1e-6,
) -> Tensor:
    """Causal linear attention over many streams, whose state is kept as sums and updated in place.

    q [T, H, D], k [T, Hkv, D] and v [T, Hkv, Dv] (fp32, bf16 or fp16) hold the streams one after
    the other, stream b at tokens indptr[b] to indptr[b+1] (int32 [B+1]); it has row rows[b] (int32
    [B], all different) of state fp32 [S, Hkv, D, Dv] and norm fp32 [S, Hkv, D]. Each token does

        state = e^log_decay state + k^ v^T,   norm = e^log_decay norm + phi(k)
        o = q^ state / (phi(q) . norm + count eps), or scale q^ state where norm is None

    and sees itself. phi is `feature`: none, relu, or elu1 (ELU plus one). q^ and k^ are phi of the
    rows, or the rows as they are with `raw`; both then turn by offset (int64 [T]) times inv_freq
    (fp64 [R], dimension i with i + R). log_decay is fp32 [Hkv]. With k and v None the state is read
    only. Retention is feature="none" and norm None. Hybrid Forcing's form is raw=True: its running
    means over N tokens give the same as these sums with count N (int64 [S], 1 if None).

    D and Dv are multiples of 16 up to 512. Gives o [T, H, Dv] in q's dtype. The bits of o and of
    the state depend on no other stream and, on the CPU, not on how a stream came in chunks; a GPU
    adds up what comes together, so that chunks agree to rounding there. Raises TypeError or
    ValueError naming the argument, before anything is written. A GPU looks at indptr and rows in
    debug mode alone, and keeps no state for a row that there is not.

    Sources: Katharopoulos et al. (2020), RetNet (Sun et al., 2023), leeruibin/hybrid-forcing.
    """
    if feature not in FEATURES:
        raise bad_value("linear_attention", "feature", "none, relu or elu1", feature)
    return _way()(
        q, k, v, state, norm, indptr, rows, log_decay, inv_freq, offset, count, FEATURES[feature],
        raw, scale, eps,
    )  # fmt: skip


_way = register(SPEC)
