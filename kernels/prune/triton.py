# SPDX-License-Identifier: Apache-2.0
"""The ops that compare, compact and scatter rows, in Triton. Not yet seen running on a GPU."""

from __future__ import annotations

from .triton_compact import compact, compact_inplace, scatter_back
from .triton_similarity import similarity

__all__ = ["compact", "compact_inplace", "scatter_back", "similarity"]
