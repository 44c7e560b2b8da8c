# SPDX-License-Identifier: Apache-2.0
"""SirLLM: the first tokens, those that were hardest to predict, and recent ones.

Yao et al., arXiv 2405.12528, and its code: 4 first tokens, scores that decay by a factor at every
turn of a dialogue (1 by default).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .common import Kept, best, whole_number


def score(logits: Tensor, tokens: Tensor) -> Tensor:
    """fp32 [B, N]: -log p of tokens int64 [B, N] by logits [B, N, V], which predict the next ones.

    The first token, which nothing predicts, gets the largest score of its row.
    """
    logp = logits[:, :-1].float().log_softmax(-1)
    s = -logp.gather(-1, tokens[:, 1:, None])[..., 0]
    top = s.amax(-1, True) if s.shape[1] else s.new_zeros(s.shape[0], min(tokens.shape[1], 1))
    return torch.cat([top, s], -1)


def keep(
    scores: Tensor, budget: int, *, first: int = 4, recent: int = 0, lengths: Tensor | None = None
) -> Kept:
    """By scores [B, N]: the first ones, the `recent` newest, and the best of what is between.

    Indices [B, 1, K], for every head and layer.
    """
    whole_number("sir_llm", "recent", recent, 0)
    return best(
        "sir_llm", scores[:, None], budget, first=first, last=recent, lengths=lengths
    )  # fmt: skip


def decay(scores: Tensor, ratio: float = 1.0) -> Tensor:
    """Scores at the next turn."""
    return scores * ratio
