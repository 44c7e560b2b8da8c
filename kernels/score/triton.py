# SPDX-License-Identifier: Apache-2.0
"""The scoring ops in Triton. Not yet seen running on a GPU."""

from __future__ import annotations

from .triton_assign import assign
from .triton_block import block_score
from .triton_mass import attention_mass
from .triton_segment import segment_reduce

__all__ = ["assign", "attention_mass", "block_score", "segment_reduce"]
