# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.score.spec import ASSIGN
from .registry import register


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
    "hamming". Of c the first `lengths` (int32 [] or [B]) count. Similarity is by `metric`: "cos" (0
    for rows of length 0), "dot", "l2" (the squared distance, negative), "hamming" (the number of
    bits that differ, negative). Of equally similar candidates the lowest index wins; NaN never.

    causal: row i chooses among candidates 0..i-1 only; c may be left out and is then x itself.
    bipartite (without c): rows 0, 2, 4... choose among rows 1, 3, 5... of x, as in ToMe.

    Gives int32 [..., N] and fp32 [..., N] (bipartite: half of N, rounded up): the index of the
    candidate, in x where c is left out, or -1 where there is none or its similarity is below
    `threshold`; and its similarity, -infinity for none. Computes in fp32. Numpy arrays are taken
    too and given back. Raises TypeError, ValueError or NotImplementedError naming the argument.
    Sources: ToMe (bipartite cosine), k-means (L2), V-Rex (Hamming), FluxMem (links).
    """
    return _way()(x, c, lengths, metric, threshold, causal, bipartite)


_way = register(ASSIGN, lead=1)
