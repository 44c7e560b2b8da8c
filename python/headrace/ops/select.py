# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from torch import Tensor, empty, empty_like, get_num_threads, int32, is_grad_enabled

from .. import _C
from ..kernels.select.spec import POLICIES, SELECT
from .registry import DTYPE_CODE, address, call, direct, register


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
    row (b, h) the first `lengths` (int32 [B] or [B, H]; all without it) take part, the rest is not
    looked at. NaN and -infinity are never kept by score. The best come first, of equal scores that
    of the lowest index; `lowest` turns the order: everything is as if the scores and the threshold
    were negated. Policies, by how many of the best they keep:

    - top_k: `k` of them, or for each row its `budget` (int32 [B] or [B, H], on the device).
    - threshold: those of at least `threshold`, rounded to fp32.
    - share: `share` of the candidates, rounded to the nearest number.
    - mass: as few as hold `mass` of the sum of count * exp(score - largest score), with counts
      fp32 ([N], [B, N] or [B, H, N]; 1 without).
    - otsu: those above the cut of 256 equal bins that parts the scores best (Otsu, 1979; the first
      of equally good cuts); all, where all scores are equal.
    - quota: of every bucket the best `quota`, and the best `floor` of all whatever their bucket;
      buckets int32 ([N], [B, N] or [B, H, N]), an id outside 0..N-1 is never kept by score.
    - flat: `k` (or a `budget` [B]) for all heads of a batch entry together, `floor` of each at
      least; of equal scores the lowest head, then the lowest index.

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
    if type(score) is Tensor and type(policy) is str and policy in _CODES and direct():
        sizes, kept = score.shape, capacity
        if kept is None and len(sizes):
            kept = sizes[-1]
            if type(k) is int and 0 <= k < kept and policy != "flat":
                kept = k
        if type(kept) is int and 0 < kept < 2**31 and 0 < len(sizes) < 4:
            *lead, _ = sizes
            index = empty(*lead, kept, dtype=int32)
            count = empty(*lead, dtype=int32) if lead else empty_like(_NUMBER)
            given = (k, threshold, share, mass, budget, counts, buckets, forced, lengths,
                     quota, floor, first, last, lowest)  # fmt: skip
            code, recorded = _CODES[policy], is_grad_enabled()
            if _C.select_plain(score, code, given, index, count, recorded, get_num_threads()):
                return index, count
    dims = score.ndim
    index, count = call(
        "select",
        _rows(score, 3),
        policy,
        k=k,
        budget=_columns(budget),
        threshold=threshold,
        share=share,
        mass=mass,
        counts=_rows(counts, 3),
        buckets=_rows(buckets, 3),
        quota=quota,
        floor=floor,
        first=first,
        last=last,
        forced=_rows(forced, 4),
        lengths=_columns(lengths),
        lowest=lowest,
        capacity=capacity,
    )
    if dims == 2:
        return index[:, 0], count[:, 0]
    return (index[0, 0], count[0, 0]) if dims == 1 else (index, count)


_CODES = {name: i for i, name in enumerate(POLICIES)}
_NUMBER = empty((), dtype=int32)


def _rows(x: Any, dims: int) -> Any:
    """[B, ...] gets an axis of heads, [...] one of batches too."""
    if x is None or x.ndim >= dims:
        return x
    return x[:, None] if x.ndim == dims - 1 else x[None, None]


def _columns(x: Any) -> Any:
    return x[:, None] if x is not None and x.ndim == 1 else x


def _cpu(bound, axes, outs):
    score, (index, count) = bound["score"], outs
    options = [bound[n] for n in ("budget", "counts", "buckets", "forced", "lengths")]
    limit = bound["k"]
    _C.select(
        score.data_ptr(),
        score.stride()[:2],
        (axes["B"], axes["H"], axes["N"], axes["K"]),
        DTYPE_CODE[score.dtype],
        POLICIES.index(bound["policy"]),
        [address(x) for x in options],
        [_strides(x) for x in options],
        0 if bound["forced"] is None else bound["forced"].shape[2],
        (bound["threshold"], bound["share"], bound["mass"]),
        (-1 if limit is None else limit, bound["quota"], bound["floor"]),
        (bound["first"], bound["last"]),
        bound["lowest"],
        index.data_ptr(),
        count.data_ptr(),
        get_num_threads(),
    )


def _strides(x: Tensor | None) -> list[int]:
    """Of the first four axes, 0 where there is one row for all."""
    if x is None:
        return [0] * 4
    made = [0 if i < 2 and x.shape[i] == 1 else x.stride(i) for i in range(x.dim())]
    return made + [0] * (4 - len(made))


register(SELECT, _cpu)
