# SPDX-License-Identifier: Apache-2.0
"""What the launchers of the GPU kernels read off their arguments, and refuse by name."""

from __future__ import annotations

import torch

from headrace.errors import bad_value

FORMAT = {torch.int8: 3, torch.float8_e4m3fn: 4}
"""Quantised pages, by the codes of headrace.compiled; 0 stands for floats."""


def as_bits(pages):
    """e4m3 as uint8: not every GPU has the type."""
    return pages.view(torch.uint8) if pages.dtype == torch.float8_e4m3fn else pages


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
