# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.score.spec import ATTENTION_MASS
from .registry import register


def attention_mass(
    q: Tensor,
    k: Tensor,
    *,
    lse: Tensor | None = None,
    past: Tensor | None = None,
    lengths: Tensor | None = None,
    causal: bool = True,
    reduce: str = "mean",
    exclude: int = 0,
    pool: int = 1,
    pooling: str = "mean",
    decay: float = 1.0,
    scale: float | None = None,
) -> Tensor:
    """How much attention every cached key receives from the queries of its group.

    q [B, Hq, W, D]: the queries that look, such as the last W rows of a prompt (one row: TOVA,
    FastV; a window: SnapKV; all of them: H2O). k [B, Hkv, N, D], like q fp32, bf16 or fp16; Hkv
    divides Hq, D a multiple of 16. Of k the first `lengths` (int32 [B]; N without it) count, the
    rest is not read. With `causal` the last query stands at the last key. A query spreads 1 over
    the keys that it sees, by softmax of scale * q.k (scale 1/sqrt(D) by default); one that sees
    none gives 0.

    Over the W queries of the heads that share a kv head it takes the "mean", "sum" or "max"
    (`reduce`). The last `exclude` keys are left out of what follows; then `pool` (an odd number of
    neighbours, as "mean" over all of them, with 0 beyond the ends, or "max") smooths along them.
    `past` fp32 [B, Hkv, P], P <= N - exclude, is what the first P keys had received: `decay` times
    that is added.

    lse fp32 [B, Hq, W]: the logarithms of the sums of the softmax, as `attention` gives them with
    return_lse (no learned sink counts in them), if known: then keys are read once, not twice.

    Gives fp32 [B, Hkv, N - exclude], 0 for keys that do not count. Computes in fp32. Numpy arrays
    are taken too and given back. Raises TypeError, ValueError or NotImplementedError naming the
    argument. Sources: SnapKV, TOVA, H2O, FastV.
    """
    return _way()(q, k, lse, past, lengths, causal, reduce, exclude, pool, pooling, decay, scale)


_way = register(ATTENTION_MASS)
