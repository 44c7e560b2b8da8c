# SPDX-License-Identifier: Apache-2.0
"""SAVEMem: what any question might ask about stays, and old memory is opened when it is needed.

Wu et al., arXiv 2605.07897, and its code. Tokens are worth the largest cosine with the tokens of
five fixed questions. A frame going to the long-term tier keeps 0.15 to 0.40 of its tokens, a
quarter of them in each quadrant. The gate: a frame's affinity to a question is the mean over its
tokens of the largest cosine with the question's; while that of the newest frames, averaged, is at
least `ratio` times its running mean (which has 0.2 of it), older tiers stay closed. Once open, the
more the affinities of frames differ, the fewer frames are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..errors import bad_value
from .common import whole_number


def worth(x: Tensor, probes: Tensor) -> Tensor:
    """fp32 [N]: largest cosine of tokens x [N, D] with probes [Q, D]; D a multiple of 16."""
    return ops.assign(x.float(), probes.float())[1]


def affinity(x: Tensor, question: Tensor) -> float:
    """Mean over tokens x [N, D] of the largest cosine with tokens of the question [Q, D]; 0 for no
    tokens.
    """
    return float(worth(x, question).double().mean()) if len(x) else 0.0


@dataclass
class Opens:
    """Whether a question needs more than the newest frames; remembers a running mean."""

    ratio: float = 0.9
    alpha: float = 0.2
    mean: float | None = None

    def __call__(self, short: Sequence[float]) -> bool:
        """short: affinities of the newest frames. Without any it opens, and remembers nothing."""
        if not short:
            return True
        score = sum(short) / len(short)
        before = score if self.mean is None else self.mean
        self.mean = self.alpha * score + (1 - self.alpha) * before
        return score < self.mean * self.ratio


def how_many(
    affinities: Sequence[float], top: int, *, even: float = 0.05, apart: float = 0.3,
    least: float = 0.9,
) -> int:  # fmt: skip
    """Frames to take: all when the affinities' coefficient of variation is at most `even`, `top`
    from `apart` on, in between as the line says; and `least` of all frames in any case.
    """
    whole_number("save_mem", "top", top, 0)
    n = len(affinities)
    if n <= top:
        return n
    x = torch.tensor(affinities, dtype=torch.float64)
    spread = float(x.std()) / max(abs(float(x.mean())), 1e-8) if n > 1 else 0.0
    if spread <= even:
        return n
    share = min(1.0, (spread - even) / (apart - even))
    return max(int(n - share * (n - top)), max(top, int(n * least)))


def settle(worths: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """bool [N]: which tokens of a frame go on to the long-term tier, by worth fp32 [N] and place.

    In each quadrant of the rectangle that they fill a quarter of what may stay, then the best of
    the rest; of four tokens or fewer all.
    """
    n = len(worths)
    if row.shape != worths.shape or column.shape != worths.shape:
        raise bad_value("save_mem", "row", f"as many as there are tokens, {n}", len(row))
    share = 0.15 + 0.25 * min(1.0, max(0.0, float(worths.mean()))) if n else 1.0
    total = max(4, int(n * share))
    if n <= 4 or total >= n:
        return torch.ones_like(worths, dtype=torch.bool)
    halves = ((x > (x.min() + x.max()) / 2).long() for x in (row.float(), column.float()))
    quadrant = 2 * next(halves) + next(halves)
    each = max(1, total // 4)
    first, count = ops.select(
        worths, "quota", buckets=quadrant.int(), quota=each, capacity=4 * each
    )
    kept = torch.zeros_like(worths, dtype=torch.bool)
    kept[first[: int(count)].long()] = True
    rest, count = ops.select(worths.masked_fill(kept, -torch.inf), k=max(0, total - int(count)))
    kept[rest[: int(count)].long()] = True
    return kept
