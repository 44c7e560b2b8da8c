# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, empty, empty_like, float32, get_num_threads, int32, is_grad_enabled

from .. import _C
from ..errors import bad_value
from ..kernels.prune.spec import COMPACT
from .registry import DTYPE_CODE, call, direct, register

OPTIONS = ("index", "count", "target", "weights", "mask")
_NUMBER = empty((), dtype=int32)


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
    if type(x) is Tensor and (index is None or type(index) is Tensor) and direct():
        *lead, rows, depth = x.shape if x.ndim > 1 else (0, 0)
        size = rows if capacity is None else capacity
        if index is not None:
            size = index.shape[-1] if capacity is None and index.ndim else 0
        if type(size) is int and 0 < size < 2**31:
            y, sizes = empty(*lead, size, depth, dtype=x.dtype), empty(*lead, size, dtype=float32)
            kept = empty(*lead, size, dtype=int32)
            number = empty(*lead, dtype=int32) if lead else empty_like(_NUMBER)
            options, recorded = (index, count, mask, target, weights), is_grad_enabled()
            threads = get_num_threads()
            if _C.compact_plain(x, options, y, sizes, kept, number, recorded, threads):
                return Compacted(y, sizes, kept, number)
    dims = x.ndim
    out = call(
        "compact",
        rows_of("compact", x),
        spread(index, 3),
        counts_of(count),
        mask=spread(mask, 3),
        target=spread(target, 3),
        weights=spread(weights, 3),
        capacity=capacity,
    )
    if dims == 4:
        return Compacted(*out)
    y, merged, at, many = out
    outer = y.shape[:1] if dims == 3 else ()
    flat = (*outer, y.shape[2])
    return Compacted(
        y.reshape(*flat, y.shape[3]), merged.reshape(flat), at.reshape(flat), many.reshape(outer)
    )


def rows_of(op: str, x: Any, name: str = "x") -> Any:
    """[B, H, N, D] from [N, D] or [B, N, D]."""
    if x.ndim not in (2, 3, 4):
        expected = "[N, D], [B, N, D] or [B, H, N, D]"
        raise bad_value(op, name, expected, f"shape {tuple(x.shape)}")
    return x if x.ndim == 4 else spread(x, 4)


def spread(x: Any, dims: int) -> Any:
    """[B, ...] gets an axis of heads, [...] one of batches too."""
    if x is None or x.ndim >= dims:
        return x
    lead = (x.shape[0], 1) if x.ndim == dims - 1 else (1, 1, *x.shape[:1])
    return x.reshape(*lead, *x.shape[1:])  # a view: quicker than indexing with None


def counts_of(x: Any) -> Any:
    """[B, H] from [B] or a single number."""
    return spread(x, 2)


def strides(x: Tensor) -> tuple[int, int]:
    """Of batch and head; 0 along what there is once."""
    (batch, heads, *_), (b, h, *_) = x.shape, x.stride()
    return (0 if batch == 1 else b, 0 if heads == 1 else h)


def addresses(bound: Any) -> list[int]:
    """Of index, count, target, weights and mask, of which an op has some."""
    get = bound.get
    return [0 if (x := get(name)) is None else x.data_ptr() for name in OPTIONS]


def options(bound: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """`addresses`, and strides of batch and head."""
    get = bound.get
    steps = [(0, 0) if (x := get(name)) is None else strides(x) for name in OPTIONS]
    return addresses(bound), steps


def _cpu(bound, axes, outs):
    x, (y, sizes, index, count) = bound["x"], outs
    _C.compact(
        x.data_ptr(),
        x.stride()[:3],
        y.data_ptr(),
        y.stride()[:3],
        *options(bound),
        [axes[n] for n in "BHNKD"],
        x.element_size(),
        DTYPE_CODE.get(x.dtype, -1),
        [x.data_ptr() for x in (sizes, index, count)],
        get_num_threads(),
    )


register(COMPACT, _cpu)
