# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

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
) -> None:
    """Writes keys and values into pages, in place; each key rotated once, about its page's origin.

    k, v [T, Hkv, D]; k_pages [N, Hkv, D, P] (keys are columns) and v_pages [N, Hkv, P, D], of any
    of fp32, bf16, fp16; where int64 [T, 3]: page, slot, and offset, the token's logical position
    minus the origin of its page. inv_freq fp64 [R] with 2R <= D: dimension i turns with i + R by
    offset * inv_freq[i]; None stores keys as they are. A slot named twice holds one of the two.
    Raises TypeError or ValueError naming the argument, before anything is written.
    """
    call("append", k, v, k_pages, v_pages, where, inv_freq=inv_freq)


def page_strides(pages: Tensor, op: str, name: str) -> tuple[int, int]:
    """Strides of page and head; the two axes inside must be dense."""
    page, head, row, one = pages.stride()
    if (one != 1 or row != pages.shape[3]) and pages.numel():
        raise bad_value(op, name, "the last two axes contiguous", f"strides {pages.stride()}")
    return page, head


def _cpu(bound, axes, outs):
    k, v, pages = bound["k"], bound["v"], bound["k_pages"]
    inv_freq = bound["inv_freq"]
    _C.append(
        k.data_ptr(),
        k.stride()[:2],
        v.data_ptr(),
        v.stride()[:2],
        pages.data_ptr(),
        page_strides(pages, "append", "k_pages"),
        bound["v_pages"].data_ptr(),
        page_strides(bound["v_pages"], "append", "v_pages"),
        bound["where"].data_ptr(),
        address(inv_freq),
        0 if inv_freq is None else inv_freq.numel(),
        (axes["T"], axes["Hkv"], axes["D"], axes["P"], axes["N"]),
        DTYPE_CODE[k.dtype],
        DTYPE_CODE[pages.dtype],
        get_num_threads(),
    )


register(APPEND, _cpu)
