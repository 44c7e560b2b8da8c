# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, empty, float32, get_num_threads, is_grad_enabled

from .. import _C
from ..errors import bad_value
from ..kernels.prune.spec import METRICS, SIMILARITY
from .registry import DTYPE_CODE, address, call, direct, register

_METRICS = {name: i for i, name in enumerate(METRICS)}
_CODES = DTYPE_CODE | {torch.uint8: 5}


def similarity(
    x: Tensor,
    ref: Tensor,
    metric: str = "cos",
    *,
    index: Tensor | None = None,
    patch_height: int = 1,
    patch_width: int = 1,
    radius: int = 0,
    alpha: float = 1.0,
) -> Tensor:
    """Similarity of rows, of patches or of whole frames to a reference, in one pass over both.

    x [N, D], [F, N, D] or [F, H, W, D]: features of tokens (fp32, bf16, fp16), or pixels (uint8,
    D channels). ref of x's dtype or fp32. Metrics, r being the reference's row:

    - cos: x.r / (|x| |r|), and 0 where either is 0.
    - dot: x.r.
    - l1: mean |x - r| over the elements, in units of x. A distance, as l2: the smaller the closer.
    - l2: |x - r|^2, their sum.
    - gauss: exp(-|x - r|^2 / (2 alpha)).

    The reference of a row is

    - the row in the same place of ref, shaped as x, or as x without leading axes; an axis of 1
      serves all. Previous frames: similarity(x[1:], x[:-1]); a mean of each frame: ref [F, 1, D].
    - with `index` (int32, shaped as x without D, or with axes of 1), row index[...] of ref [R, D]:
      what was last kept in this place, or the mean of this row's segment. An index that is no row
      stands for no reference: the score is -infinity, or +infinity of a distance.
    - with `radius` r, the best of the (2r + 1)^2 rows around the same place of ref [F or 1, H, W,
      D]; what lies outside the frame does not count.

    Patches of `patch_height` x `patch_width` rows of x [F, H, W, D] are compared as one long row
    each, those at the right and the lower edge as far as they go; 0 stands for the whole axis, so
    that 0 and 0 give one score for a frame. A patch, a radius and an index exclude each other.

    Gives fp32 [N], [F, N] or [F, ceil(H / patch_height), ceil(W / patch_width)]. Products are fp32,
    added up in fp32 along a row and in fp64 beyond; l1 of uint8 is exact to the last rounding. NaN
    gives NaN. Numpy arrays are taken too and given back. Raises TypeError, ValueError or
    NotImplementedError naming the argument. Sources: TimeChat-Online's DTD and EVS (previous
    frame), FluxMem (neighbourhood), STC (Gaussian, means), StreamDiffusion's filter (whole frames).
    """
    rows = patch_height == patch_width == 1 and radius == 0
    if rows and type(x) is Tensor and type(metric) is str and metric in _METRICS and direct():
        *lead, _ = x.shape or (0,)
        made = empty(*lead, dtype=float32) if lead else x
        code, recorded = _METRICS[metric], is_grad_enabled()
        if _C.similarity_plain(x, ref, code, index, alpha, made, recorded, get_num_threads()):
            return made
    dims = x.ndim
    if dims not in (2, 3, 4):
        expected = "[N, D], [F, N, D] or [F, H, W, D]"
        raise bad_value("similarity", "x", expected, f"shape {tuple(x.shape)}")
    if dims < 4 and (radius > 0 or patch_height > 1):
        expected = "[F, H, W, D] with patches or a radius"
        raise bad_value("similarity", "x", expected, f"shape {tuple(x.shape)}")
    score = call(
        "similarity",
        _grid(x, dims, 4),
        _rows(ref) if index is not None else _grid(ref, dims, 4),
        metric,
        index=None if index is None else _grid(index, dims - 1, 3),
        patch_height=patch_height,
        patch_width=patch_width,
        radius=radius,
        alpha=alpha,
    )
    if dims == 3:
        return score[:, 0]
    return score[0, 0] if dims == 2 else score


def _grid(x: Any, dims: int, full: int) -> Any:
    """Frames of height 1 for tensors of x's kind; leading axes of 1 for those of fewer axes."""
    if x.ndim == dims == full - 1:
        return x[:, None]
    for _ in range(full - x.ndim):
        x = x[None]
    return x


def _rows(ref: Any) -> Any:
    return ref[None, None] if ref.ndim == 2 else ref


def _strides(x: Tensor, axes: int = 3) -> list[int]:
    """Of the leading axes; 0 along what there is once."""
    return [0 if x.shape[i] == 1 else x.stride(i) for i in range(axes)]


def _cpu(bound, axes, outs):
    x, ref, index = (bound[n] for n in ("x", "ref", "index"))
    high, wide = bound["patch_height"] or axes["H"], bound["patch_width"] or axes["W"]
    _C.similarity(
        x.data_ptr(),
        x.stride()[:3],
        ref.data_ptr(),
        _strides(ref) if index is None else ref.stride()[:3],
        address(index),
        (0, 0, 0) if index is None else _strides(index),
        tuple(x.shape),
        ref.shape[2],
        (max(1, min(high, axes["H"])), max(1, min(wide, axes["W"]))),
        min(bound["radius"], max(axes["H"], axes["W"])),
        bound["alpha"],
        METRICS.index(bound["metric"]),
        _CODES[x.dtype],
        _CODES[ref.dtype],
        outs[0].data_ptr(),
        get_num_threads(),
    )


register(SIMILARITY, _cpu)
