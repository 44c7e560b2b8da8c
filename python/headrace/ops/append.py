# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from ..kernels.attention.spec import APPEND
from .registry import register


def append(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    where: Tensor,
    *,
    inv_freq: Tensor | None = None,
    freq_axis: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Writes keys and values into pages, in place; each key rotated once, about its page's origin.

    k, v [T, Hkv, D]; k_pages [N, Hkv, D, P] (keys are columns) and v_pages [N, Hkv, P, D]; where
    int64 [T, 3]: page, slot, and offset, the token's logical position minus the origin of its page.
    inv_freq fp64 [R] with 2R <= D: dimension i turns with i + R by offset * inv_freq[i]; None
    stores keys as they are. With three position axes `where` is [T, 5], an offset for each, and
    freq_axis int32 [R] in 0..2 says which one turns each frequency. For pages that hold one head
    each, pass k and v as [T*Hkv, 1, D] with a row of `where` for each. A slot named twice holds one
    of the two.

    Pages are of any of fp32, bf16, fp16, or int8 or float8_e4m3fn with k_scale and v_scale. These
    are fp32 [N, Hkv, P], written here: the scale of a row, once rotated, is its largest magnitude
    over 127 or 448; below 2**-100 the row is stored as zeros; NaN for a row with a NaN or infinity,
    which whoever sees the row will then see. Or they are [N, Hkv, 1], one scale per page that is
    read here, and what exceeds it saturates: in int8 infinities too, and NaN, which int8 has not,
    becomes 0; in fp8 both become NaN. What is written depends on the token alone, so never on how
    tokens came in chunks. Raises TypeError or ValueError naming the argument, before anything is
    written.
    """
    _way()(k, v, k_pages, v_pages, where, inv_freq, freq_axis, k_scale, v_scale)


_way = register(APPEND)
