# SPDX-License-Identifier: Apache-2.0
"""LongLive-RAG: frames of a generated video that are most like the newest one.

arXiv 2606.02553, and its code: a frame is described by the mean of its tokens (or by a trained
encoder); of the frames that left the window, less the 5 that left it last, the 6 of largest cosine
with the newest one's descriptor come back, the same for all layers and steps.
"""

from __future__ import annotations

from torch import Tensor

from .. import ops
from .common import Kept, best, whole_number


def describe(x: Tensor) -> Tensor:
    """fp32 [F, D]: mean over the tokens of frames x [F, P, D]."""
    return x.float().mean(1)


def score(newest: Tensor, archived: Tensor) -> Tensor:
    """fp32 [F]: cosine of descriptors archived [F, D] with newest [D]; 0 for those of 0."""
    return ops.similarity(archived.float(), newest.float()[None], "cos")


def keep(scores: Tensor, budget: int = 6, *, guard: int = 5) -> Kept:
    """The `budget` best of scores [F], in the order they left; the last `guard` are not asked.

    int32 [1, 1, K] and [1, 1].
    """
    whole_number("longlive_rag", "guard", guard, 0)
    asked = scores[: max(0, len(scores) - guard)]
    return best("longlive_rag", asked[None, None], budget)
