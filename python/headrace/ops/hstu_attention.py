# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.hstu.spec import HSTU_ATTENTION
from .registry import register


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_indptr: Tensor,
    q_indptr: Tensor | None = None,
    num_targets: Tensor | None = None,
    k_order: Tensor | None = None,
    attn_scale: Tensor | None = None,
    *,
    max_seq_len: int,
    alpha: float | None = None,
    causal: bool = True,
    max_attn_len: int = 0,
    contextual_seq_len: int = 0,
    min_full_attn_seq_len: int = 0,
    sinks: int = 0,
) -> Tensor:
    """Pointwise attention of HSTU over jagged sequences: silu(alpha q.k) / max_seq_len, no softmax.

    q [Lq, H, D], k [Lk, H, D], v [Lk, H, Dv], one dtype (fp32, bf16, fp16), D and Dv multiples of
    16 up to 256; gives o [Lq, H, Dv]. Sequence b holds keys k_indptr[b] : k_indptr[b + 1] and the
    queries that q_indptr (int32 [B + 1] both) says. Without q_indptr every token asks. With it
    (the cached delta form) the queries of a sequence are its last tokens, whose keys are in k.
    alpha defaults to D ** -0.5; attn_scale fp32 [Lq] takes the place of 1 / max_seq_len per row.

    Who sees whom, by index t of the row and j of the key in a sequence (a row always sees itself):
    causal: j < t. num_targets int32 [B]: the last ones are targets, which see the history and
    themselves, all from where the first target stands. max_attn_len L > 0: t - j <= L, so L + 1
    tokens with the row's own. contextual_seq_len C > 0: the first C tokens count as one, at
    distance 0 from each other, and see the whole history. min_full_attn_seq_len M > 0: L does not
    bind targets and the last M of the history. sinks: the first tokens are seen at any distance;
    with C of them the contextual prefix stays in sight of all (the published rule lets it go). Not
    causal: distances count both ways, so the history within L of the targets sees them too.

    k_order int64 [Lk]: index of every key in its sequence, for a rolling cache: a ring, or a prefix
    and a window. Indices come in any order, none twice; those that are not there are seen by
    nobody. The length of a sequence is then one more than its largest index, which the last query
    has. A GPU checks what only the values tell in debug mode alone; it reads nothing beyond.

    On the CPU the bits of a row depend neither on other sequences, nor on which rows come with
    it, nor on where in k its keys lie; on a GPU not on other sequences. What a row does not see
    never reaches it, but that on a GPU a NaN or an infinity among the values that one row sees may
    reach the rows of its sequence that are computed with it. Numpy arrays are taken too and given
    back. No relative attention bias. Raises TypeError, ValueError or NotImplementedError naming the
    argument.
    """
    return _way()(
        q, k, v, k_indptr, q_indptr, num_targets, k_order, attn_scale, max_seq_len,
        _alpha(q) if alpha is None else alpha, causal, max_attn_len, contextual_seq_len,
        min_full_attn_seq_len, sinks,
    )  # fmt: skip


def _alpha(q: Tensor) -> float:
    shape: tuple[int, ...] = tuple(getattr(q, "shape", ()))
    return float(shape[-1] ** -0.5) if shape and shape[-1] else 1.0


_way = register(HSTU_ATTENTION)
