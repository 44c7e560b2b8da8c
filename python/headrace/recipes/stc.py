# SPDX-License-Identifier: Apache-2.0
"""STC: an encoder recomputes the tokens whose keys changed most, and few of a frame go on.

arXiv 2512.00891 and its code (github.com/lern-to-write/STC). Cacher: of every frame that is no
reference the quarter of the tokens whose keys are least like the reference's. Pruner: over the half
of the channels that vary least, 60 of 196 tokens of a frame, those least like the mean of the frame
and the mean of all chunks so far, by Gaussians of five widths. Its history is here one running sum
over all channels; the code averages the chosen channels of each chunk by their rank, whichever
channels those are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .common import Kept, whole_number

ALPHAS = tuple(2.0**i for i in range(-3, 2))


def stale(
    k: Tensor, reference: Tensor, *, ratio: float = 0.25, threshold: float | None = None
) -> Kept:
    """Which tokens of a frame an encoder layer computes anew: int32 [F, K] and counts [F].

    k [F, N, E]: keys of F frames, all heads side by side. reference [1 or F, N, E]: those of the
    reference frame. The int(ratio * N) tokens of the least cosine, one at least; or, with a
    `threshold`, those of at most that (at 1 all of them). NaN is like nothing.
    """
    n = k.shape[1]
    near = ops.similarity(k, reference, "cos").clamp(max=1).nan_to_num(-torch.inf)
    if threshold is not None:
        return ops.select(near, "threshold", threshold=threshold, lowest=True)
    if not 0 <= ratio <= 1:
        raise bad_value("stc", "ratio", "0 to 1", ratio)
    return ops.select(near, k=min(n, max(1, int(ratio * n))), lowest=True)


@dataclass
class History:
    """The mean of the means of all chunks so far, as a sum fp64 [D] and their number."""

    total: Tensor | None = None
    chunks: int = 0

    def add(self, x: Tensor) -> Tensor:
        """fp32 [D]: the mean, a chunk of features [F, N, D] among them from now on."""
        mean = x.double().mean((0, 1))
        self.total = mean if self.total is None else self.total + mean
        self.chunks += 1
        return (self.total / self.chunks).float()


def channels(x: Tensor, share: float = 0.5) -> Tensor:
    """int64 [int(share * D)], ascending: those channels of x [F, N, D] that vary least."""
    chosen = int(share * x.shape[-1])
    if not 1 <= chosen <= x.shape[-1]:
        raise bad_value("stc", "share", "one channel or more, and no more than all", share)
    variance = x.flatten(0, 1).double().var(0, correction=0).float()
    return ops.select(variance, k=chosen, lowest=True)[0].long()


def score(x: Tensor, mean: Tensor) -> Tensor:
    """fp32 [F, N]: how like the mean of its frame, and like `mean` [D], a token of x [F, N, D] is.

    Tokens and `mean` are taken at length 1, rows of length 0 as they are.
    """
    unit = F.normalize(x.float(), dim=-1)
    refs = unit.mean(1, keepdim=True), F.normalize(mean.float(), dim=-1).view(1, 1, -1)
    off = [ops.similarity(unit, ref, "l2") for ref in refs]
    return torch.stack([torch.exp(d / (-2 * a)) for d in off for a in ALPHAS]).sum(0)


def keep(x: Tensor, history: History, *, tokens: int = 60, share: float = 0.5) -> Kept:
    """The `tokens` of each frame of a chunk x [F, N, D] that are least like what there was.

    history: of the stream; the chunk is added to it before it is compared with it.
    """
    whole_number("stc", "tokens", tokens, 0)
    at = channels(x, share)
    s = score(x[..., at], history.add(x)[at])
    return ops.select(s, k=min(tokens, x.shape[1]), lowest=True)
