# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Report:
    """What feeding some tokens to a stream did.

    tokens: how many were fed. nll: fp32 [tokens], -log p of each given all before it, in nats; nan
    for the first token of a stream, which nothing predicts. alive: tokens that the next query sees.
    evicted: tokens of the stream that it will not see. ms: wall time of the whole step, all
    streams. logits: fp32 [tokens, vocab], row i predicts the token after the i-th; None unless
    asked for.
    """

    tokens: int
    nll: Tensor
    alive: int
    evicted: int
    ms: float
    logits: Tensor | None = None
