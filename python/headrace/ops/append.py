# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, get_num_threads

from .. import _C
from ..errors import bad_value
from ..kernels.attention.spec import APPEND
from .registry import DTYPE_CODE, address, call, register


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
    call(
        "append",
        k,
        v,
        k_pages,
        v_pages,
        where,
        inv_freq=inv_freq,
        freq_axis=freq_axis,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def page_strides(pages: Tensor, op: str, name: str) -> tuple[int, int]:
    """Strides of page and head; the two axes inside must be dense."""
    page, head, row, one = pages.stride()
    if (one != 1 or row != pages.shape[3]) and pages.numel():
        raise bad_value(op, name, "the last two axes contiguous", f"strides {pages.stride()}")
    return page, head


def page_scales(scale: Tensor | None) -> tuple[int, int, int, int]:
    """Address of scales [N, Hkv, S]; strides of page, head and slot: the last 0 when S is 1."""
    if scale is None:
        return 0, 0, 0, 0
    page, head, _ = scale.stride()
    return scale.data_ptr(), page, head, int(scale.shape[2] > 1)


def rope(bound: Mapping[str, Any], dimensions: int) -> tuple[int, int, int, int]:
    """Addresses of inv_freq and freq_axis, how many frequencies, how many axes."""
    inv_freq = bound["inv_freq"]
    half = 0 if inv_freq is None else inv_freq.numel()
    return address(inv_freq), address(bound["freq_axis"]), half, dimensions


def _cpu(bound, axes, outs):
    k, v, pages = bound["k"], bound["v"], bound["k_pages"]
    _C.append(
        k.data_ptr(),
        k.stride()[:2],
        v.data_ptr(),
        v.stride()[:2],
        pages.data_ptr(),
        page_strides(pages, "append", "k_pages"),
        bound["v_pages"].data_ptr(),
        page_strides(bound["v_pages"], "append", "v_pages"),
        page_scales(bound["k_scale"]),
        page_scales(bound["v_scale"]),
        bound["where"].data_ptr(),
        rope(bound, bound["where"].shape[1] - 2),
        (axes["T"], axes["Hkv"], axes["D"], axes["P"], axes["N"]),
        DTYPE_CODE[k.dtype],
        DTYPE_CODE[pages.dtype],
        get_num_threads(),
    )


register(APPEND, _cpu)
