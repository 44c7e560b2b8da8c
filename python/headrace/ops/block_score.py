# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.score.spec import BLOCK_SCORE
from .registry import register


def block_score(
    q: Tensor,
    keys: Tensor,
    *,
    upper: Tensor | None = None,
    index: Tensor | None = None,
    lengths: Tensor | None = None,
    heads: str = "sum",
    queries: str = "mean",
    block_size: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """Scores of blocks of cached tokens for a question, by what stands for each block.

    q [B, Hq, W, D]: W queries of every head. keys [B or 1, Hkv, N, D]: one row for each block. Both
    fp32, bf16 or fp16, not necessarily the same; Hkv divides Hq; D a multiple of 16. The score of a
    query and a block is `scale` times

    - their product, for means, centroids, landmarks, or single keys;
    - with `upper` (shaped as keys), the largest product that any key between keys and upper can
      have: keys are the least and upper the largest values of the block, element by element;
    - with int32 q and keys, D words of 32 sign bits each: bits that agree less bits that differ;
    - with `block_size` above 1, where rows are tokens and a block is that many: the largest of its
      tokens (MaxSim, with queries="sum").

    Over the W queries it takes the "mean", "sum" or "max"; then over heads: "each" keeps all of
    them, "group" adds those that share a kv head and "group_max" takes their largest, "sum" adds
    all, "max" takes the largest of all. Sums are folded into the queries, so that a row is read
    once whatever Hq and W are.

    index (int32 [B or 1, R]) names the rows of each batch entry, so that summaries can lie in a
    pool; -1, as any number that is no row, stands for none. Of the rows, or of those named, the
    first `lengths` (int32 [B]) count; a block without any gives -infinity, and what does not count
    is not read.

    Gives fp32 [B, Hq (or Hkv, or 1), blocks]; the last block may be short. Computes in fp32. Numpy
    arrays are taken too and given back. Raises TypeError, ValueError or NotImplementedError naming
    the argument. Sources: ReKV and InfLLM (means), Quest (bounds), V-Rex (sign bits), ColBERT
    (MaxSim).
    """
    return _way()(q, keys, upper, index, lengths, heads, queries, block_size, scale)


_way = register(BLOCK_SCORE)
