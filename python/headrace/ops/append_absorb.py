# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..errors import bad_value
from ..kernels.append_absorb.spec import SPECS
from .linear_attention import FEATURES
from .registry import register


def append_absorb(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    where: Tensor,
    evicted: Tensor,
    state: Tensor,
    norm: Tensor | None,
    indptr: Tensor,
    rows: Tensor,
    *,
    inv_freq: Tensor | None = None,
    freq_axis: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    log_decay: Tensor | None = None,
    count: Tensor | None = None,
    feature: str = "relu",
    raw: bool = False,
) -> None:
    """`append` into slots of a ring, folding what they held into a state of `linear_attention`.

    One visit to a slot reads the token that leaves and writes the one that comes. k, v, k_pages,
    v_pages, where, inv_freq, freq_axis, k_scale and v_scale are those of `append`, in every format
    of pages that it takes. indptr (int32 [B+1]) gives stream b the tokens indptr[b] to indptr[b+1],
    and rows (int32 [B], all different) its row of state fp32 [S, Hkv, D, D] and norm fp32
    [S, Hkv, D], or None. evicted int64 [T, 3] says what the slot of each token holds:

    - whether it holds a token to absorb; where 0, the slot is not read and the state stays;
    - the offset at which that token was appended, as `where` said then;
    - the offset at which the state wants it, as `offset` of `linear_attention` says.

    With three position axes it is [T, 7]: both offsets along each. A token that is held does

        state = e^log_decay state + k^ v^T,   norm = e^log_decay norm + phi(k),   count += 1

    where k is the key of the slot turned back by the first offset, phi is `feature` (none, relu, or
    elu1), and k^ is phi(k), or k with `raw`, turned by the second. log_decay is fp32 [Hkv], count
    int64 [S]. Keys and values are taken as the page holds them: rounded, or their codes by scale.

    A slot may be named once in a call. Tokens of a stream are absorbed in order; on the CPU the
    bits of state and norm do not depend on how they came in chunks, on a GPU they do, by rounding.
    Raises TypeError or ValueError naming the argument, before anything is written. A GPU looks at
    values in debug mode alone: it leaves out a token with no page or slot inside, and keeps no
    state for a row that there is not.

    Sources: Katharopoulos et al. (2020); Hybrid Forcing (leeruibin/hybrid-forcing).
    """
    if feature not in FEATURES:
        raise bad_value("append_absorb", "feature", "none, relu or elu1", feature)
    _way()(
        k, v, k_pages, v_pages, where, evicted, state, norm, indptr, rows, inv_freq, freq_axis,
        k_scale, v_scale, log_decay, count, FEATURES[feature], raw,
    )  # fmt: skip


_way = register(SPECS[0])
