# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import inf

import torch
from torch import Tensor, get_num_threads, is_grad_enabled

from .. import _C
from ..kernels.score.spec import BLOCK_SCORE, HEADS, QUERIES
from .registry import DTYPE_CODE, address, call, direct, register

_CODES = DTYPE_CODE | {torch.int32: 5}


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
    if index is None and lengths is None and block_size == 1 and type(q) is Tensor and direct():
        made = _plain(q, keys, upper, heads, queries, scale)
        if made is not None:
            return made
    return call(
        "block_score",
        q,
        keys,
        upper=upper,
        index=index,
        lengths=lengths,
        heads=heads,
        queries=queries,
        block_size=block_size,
        scale=scale,
    )


_HEADS = {name: i for i, name in enumerate(HEADS)}
_QUERIES = {name: i for i, name in enumerate(QUERIES)}


def _plain(
    q: Tensor, keys: Tensor, upper: Tensor | None, heads: str, queries: str, scale: float
) -> Tensor | None:
    """The same for floats that are what they should be; None for others."""
    if not (type(heads) is type(queries) is str and type(scale) is float and 0 < scale < inf):
        return None
    how, reduce = _HEADS.get(heads, -1), _QUERIES.get(queries, -1)
    if type(keys) is not Tensor or len(q.shape) != 4 or len(keys.shape) != 4:
        return None
    batch, q_heads = q.shape[:2]
    _, kv_heads, rows, _ = keys.shape
    made = torch.empty((batch, (q_heads, kv_heads, kv_heads, 1, 1)[how], rows), dtype=torch.float32)
    given = (q, keys, upper, how, reduce, scale, made)
    done = _C.block_score_plain(*given, is_grad_enabled(), get_num_threads())
    return made if done else None


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """Of batch, head and row; 0 along a batch that is shared."""
    if x is None:
        return (0, 0, 0)
    return (0 if x.shape[0] == 1 else x.stride(0), x.stride(1), x.stride(2))


def _cpu(bound, axes, outs):
    q, keys, upper, index, lengths = (bound[n] for n in BLOCK_SCORE.parameters[:5])
    sizes = [axes[n] for n in ("B", "Hq", "Hkv", "Ho", "W", "R", "N", "D")]
    _C.block_score(
        q.data_ptr(),
        _strides(q),
        keys.data_ptr(),
        _strides(keys),
        address(upper),
        _strides(upper),
        address(index),
        0 if index is None or index.shape[0] == 1 else index.stride(0),
        address(lengths),
        0 if lengths is None else lengths.stride(0),
        [*sizes, min(bound["block_size"], max(1, axes["R"])), axes["M"]],
        _CODES[q.dtype],
        _CODES[keys.dtype],
        HEADS.index(bound["heads"]),
        QUERIES.index(bound["queries"]),
        bound["scale"],
        outs[0].data_ptr(),
        get_num_threads(),
    )


register(BLOCK_SCORE, _cpu)
