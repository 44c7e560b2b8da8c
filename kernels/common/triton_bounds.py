# SPDX-License-Identifier: Apache-2.0
"""Offsets and rows that only the device knows, held to what there is: a kernel cannot raise."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def span(ends, b, total):
    """Where stream b begins and how many it has, within `total` whatever the offsets are."""
    begin = tl.minimum(tl.maximum(tl.load(ends + b), 0), total)
    end = tl.minimum(tl.maximum(tl.load(ends + b + 1), begin), total)
    return begin, end - begin


@triton.jit
def row_of(rows, b, states, size):
    """The row of stream b in 64 bits, whether it is one of `states`, and what of `size` is there:
    all, or nothing."""
    row = tl.load(rows + b).to(tl.int64)
    there = (row >= 0) & (row < states)
    return tl.where(there, row, 0), there, tl.where(there, size, 0)
