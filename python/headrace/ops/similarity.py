# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..errors import bad_value
from ..kernels.prune.spec import SIMILARITY
from .registry import register


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
    dims, others = getattr(x, "ndim", 4), getattr(ref, "ndim", 4)
    if dims < 4 and (radius > 0 or patch_height > 1):
        expected = "[F, H, W, D] with patches or a radius"
        raise bad_value("similarity", "x", expected, f"shape {tuple(x.shape)}")
    if others in (1, 3) and others != dims:  # without leading axes of x
        ref = ref[None]
    if index is not None and dims == 4 and getattr(index, "ndim", 4) == 2:
        index = index[None]
    return _way()(x, ref, metric, index, patch_height, patch_width, radius, alpha)


_way = register(SIMILARITY, lead=2)
