# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor, empty, float32, get_num_threads, int32, is_grad_enabled

from .. import _C
from ..kernels.score.spec import ASSIGN, METRICS
from .registry import DTYPE_CODE, address, call, direct, register

_CODES = DTYPE_CODE | {torch.int32: 5}


def assign(
    x: Tensor,
    c: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    metric: str = "cos",
    threshold: float | None = None,
    causal: bool = False,
    bipartite: bool = False,
) -> tuple[Tensor, Tensor]:
    """The most similar candidate of every row, and how similar it is.

    x [N, D] or [B, N, D]; c [M, D], [1, M, D] or [B, M, D]: candidates (centroids, other tokens),
    of the dtype of x: fp32, bf16 or fp16 with D a multiple of 16, or int32 words of bits for
    "hamming". Of c the first `lengths` (int32 [B]) count. Similarity is by `metric`: "cos" (0 for
    rows of length 0), "dot", "l2" (the squared distance, negative), "hamming" (the number of bits
    that differ, negative). Of equally similar candidates the lowest index wins; NaN never does.

    causal: row i chooses among candidates 0..i-1 only; c may be left out and is then x itself.
    bipartite (without c): rows 0, 2, 4... choose among rows 1, 3, 5... of x, as in ToMe.

    Gives int32 [..., N] and fp32 [..., N] (bipartite: half of N, rounded up): the index of the
    candidate, in x where c is left out, or -1 where there is none or its similarity is below
    `threshold`; and its similarity, -infinity for none. Computes in fp32. Numpy arrays are taken
    too and given back. Raises TypeError, ValueError or NotImplementedError naming the argument.
    Sources: ToMe (bipartite cosine), k-means (L2), V-Rex (Hamming), FluxMem (links).
    """
    if type(x) is Tensor and lengths is None and type(metric) is str and direct():
        *lead, rows, _ = x.shape if x.ndim > 1 else (0, 0)
        flags = type(causal) is type(bipartite) is bool
        if flags and rows and metric in METRICS:
            rows = (rows + 1) // 2 if bipartite else rows
            id, similarity = empty(*lead, rows, dtype=int32), empty(*lead, rows, dtype=float32)
            rule = (METRICS.index(metric), threshold, causal, bipartite)
            recorded, threads = is_grad_enabled(), get_num_threads()
            if _C.assign_plain(x, c, *rule, id, similarity, recorded, threads):
                return id, similarity
    one = x.ndim == 2
    id, similarity = call(
        "assign",
        x[None] if one else x,
        c[None] if c is not None and c.ndim == 2 else c,
        lengths=lengths,
        metric=metric,
        threshold=threshold,
        causal=causal,
        bipartite=bipartite,
    )
    return (id[0], similarity[0]) if one else (id, similarity)


def _cpu(bound, axes, outs):
    x, c, lengths = bound["x"], bound["c"], bound["lengths"]
    step = 2 if bound["bipartite"] else 1
    if c is None:
        c = x[:, 1::2] if bound["bipartite"] else x
    threshold = bound["threshold"]
    _C.assign(
        x.data_ptr(),
        (x.stride(0), step * x.stride(1)),
        c.data_ptr(),
        (0 if c.shape[0] == 1 else c.stride(0), c.stride(1)),
        address(lengths),
        0 if lengths is None else lengths.stride(0),
        (axes["B"], axes["O"], axes["C"], axes["D"]),
        _CODES[x.dtype],
        METRICS.index(bound["metric"]),
        float("-inf") if threshold is None else threshold,
        bound["causal"],
        (step, step - 1),
        outs[0].data_ptr(),
        outs[1].data_ptr(),
        get_num_threads(),
    )


register(ASSIGN, _cpu)
