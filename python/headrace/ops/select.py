# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.select.spec import SELECT
from .registry import register


def select(
    score: Tensor,
    policy: str = "top_k",
    *,
    k: int | None = None,
    budget: Tensor | None = None,
    threshold: float = 0.0,
    share: float = 1.0,
    mass: float = 1.0,
    counts: Tensor | None = None,
    buckets: Tensor | None = None,
    quota: int = 1,
    floor: int = 0,
    first: int = 0,
    last: int = 0,
    forced: Tensor | None = None,
    lengths: Tensor | None = None,
    lowest: bool = False,
    capacity: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Which elements a policy keeps by score: their indices, ascending, and how many.

    score [N], [B, N] or [B, H, N] (fp32, bf16 or fp16); every row is a selection of its own, and of
    row (b, h) the first `lengths` (int32 [], [B] or [B, H]; all without it) take part, the rest is
    not looked at. NaN and -infinity are never kept by score. The best come first, of equal scores
    that of the lowest index; `lowest` turns the order: everything is as if the scores and the
    threshold were negated. Policies, by how many of the best they keep:

    - top_k: `k` of them, or for each row its `budget` (int32 [], [B] or [B, H], on the device).
    - threshold: those of at least `threshold`, rounded to fp32.
    - share: `share` of the candidates, rounded to the nearest number.
    - mass: as few as hold `mass` of the sum of count * exp(score - largest score), with counts
      fp32 ([N], [B, N] or [B, H, N]; 1 without).
    - otsu: those above the cut of 256 equal bins that parts the scores best (Otsu, 1979; the first
      of equally good cuts); all, where all scores are equal.
    - quota: of every bucket the best `quota`, and the best `floor` of all whatever their bucket;
      buckets int32 ([N], [B, N] or [B, H, N]), an id outside 0..N-1 is never kept by score.
    - flat: `k` (or a `budget`, [] or [B]) for all heads of a batch entry together, `floor` of each
      at least; of equal scores the lowest head, then the lowest index.

    In the other policies than flat and quota at least `floor` are kept, and in all at most `k` or
    `budget` where given. The `first` and the `last` elements of a row, and ranges `forced` (int32
    [M, 2], [B, M, 2] or [B, H, M, 2]: begin, end), are kept whatever their score: they count in the
    number, come before all others, and go beyond `k` where they are more.

    Gives int32 indices [..., capacity], -1 behind the last one, and int32 counts [...]. `capacity`
    bounds everything (forced ones of the lowest indices first, then the best); without it, it is
    `k` and N at most, in flat N. Nothing waits for the device. Numpy arrays are taken too and given
    back. Raises TypeError or ValueError naming the argument. Sources: EVS (exact counts), LiveVLM
    (quota of position buckets), AdaKV (flat with a floor), FluxMem (Otsu), V-Rex (cumulative mass).
    """
    return _way()(
        score, policy, k, budget, threshold, share, mass, counts, buckets, quota, floor, first,
        last, forced, lengths, lowest, capacity,
    )  # fmt: skip


_way = register(SELECT, lead=2)
