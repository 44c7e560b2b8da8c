# SPDX-License-Identifier: Apache-2.0
"""What the launchers of the GPU kernels read off their arguments, and refuse by name."""

from __future__ import annotations

from headrace.contract import QUANTISED
from headrace.errors import bad_value, unsupported


def only_plain(op, bound, axes):
    """Refuses quantised pages, three position axes, a rotary gain, and views per kv head."""
    if bound["k_pages"].dtype in QUANTISED:
        have = "float32, bfloat16 and float16 on this backend"
        raise unsupported(op, "k_pages", have, bound["k_pages"].dtype)
    if bound["freq_axis"] is not None:
        raise unsupported(op, "freq_axis", "None on this backend", "a tensor")
    if bound.get("rope_gain", 1.0) != 1.0:
        raise unsupported(op, "rope_gain", "1.0 on this backend", bound["rope_gain"])
    if axes.get("G", 1) > 1:
        raise unsupported(op, "entry_indptr", "a list per stream on this backend", axes["L"] + 1)
    if "q_pos" in bound and bound["q_pos"].dim() == 2:
        raise unsupported(op, "q_pos", "1 axis on this backend", "3")


def page_strides(op, name, pages):
    """Strides of page and head, in elements; the two axes inside must be dense."""
    if pages.numel() and pages.stride()[2:] != (pages.shape[-1], 1):
        raise bad_value(op, name, "the last two axes contiguous", f"strides {pages.stride()}")
    return pages.stride(0), pages.stride(1)


def scale_strides(scale):
    """Strides of page, head and slot of scales [N, Hkv, S]; the last 0 when S is 1."""
    if scale is None:
        return 0, 0, 0
    return scale.stride(0), scale.stride(1), int(scale.shape[2] > 1)
