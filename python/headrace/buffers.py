# SPDX-License-Identifier: Apache-2.0
"""Memory that kernels read in pieces of a few KiB, here and there, or write for the first time."""

from __future__ import annotations

from torch import Tensor

from . import _C


def huge(x: Tensor, part: int | None = None) -> Tensor:
    """x itself, in huge pages where the system gives them: a hint, before the first write.

    Kernels read such memory page by page, in any order; in pages of 4 KiB part of that time goes
    into translating addresses. `part` is how many bytes fill up together (a layer's pages of a
    pool); below 8 MiB nothing is asked, since the first write to a huge page takes all of it.
    Nothing is asked for other devices than the CPU.
    """
    if x.device.type == "cpu" and x.is_contiguous() and (part is None or part >= 8 << 20):
        _C.prefer_huge_pages(x.data_ptr(), x.nbytes)
    return x
