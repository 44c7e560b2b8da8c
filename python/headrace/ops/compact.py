# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..kernels.prune.spec import COMPACT
from .registry import register


class Compacted(NamedTuple):
    """Rows that are kept [..., K, D], their sizes and indices [..., K], and how many [...]."""

    y: Tensor
    sizes: Tensor
    kept: Tensor
    number: Tensor


def compact(
    x: Tensor,
    index: Tensor | None = None,
    count: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    target: Tensor | None = None,
    weights: Tensor | None = None,
    capacity: int | None = None,
) -> Compacted:
    """The rows that are kept, side by side in their order, and what others merge into them.

    x [N, D], [B, N, D] or [B, H, N, D] of any dtype from 1 to 8 bytes that the ops know. Which rows
    are kept, for every batch entry or head on its own:

    - `index` (int32 [K], [B, K] or [B, H, K]), ascending, of which the first `count` (int32 [],
      [B] or [B, H], on the device; all without it) are meant, as `select` gives them; or
    - `mask` (bool [N], [B, N] or [B, H, N]); K is then `capacity`, or N without it, and of more
      rows than K the first are kept.

    With `target` (int32 [N], [B, N] or [B, H, N]), x floating, a row that is not kept merges into
    the kept row target[i]; where that is not kept, or is no row, it is dropped. A kept row becomes
    the mean of its members weighted by `weights` (fp32 as target, as the sizes of tokens that were
    merged before; 1 without). Rows that are alone, or whose weights add up to 0, stay as they are.

    Gives (y [..., K, D], sizes fp32 [..., K], kept int32 [..., K], number int32 [...]): the rows,
    what each stands for, their indices, and how many. Behind them y and sizes are 0, kept is -1.
    A size is the sum of the weights of a row's members. Copies are exact; means are computed in
    fp32, members in their order, and rounded once. Nothing waits for the device. Rows that are
    dropped are not read. Numpy arrays are taken too and given back. Raises TypeError,
    ValueError (on the CPU also for an index that does not ascend or is no row; on a GPU such a row
    is 0) or NotImplementedError naming the argument. Sources: DTD, EVS and kvpress (gathers), ToMe
    and VisionZip (merges).
    """
    return Compacted(*_way()(x, index, count, mask, target, weights, capacity))


_way = register(COMPACT, lead=2)
