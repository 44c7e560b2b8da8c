# SPDX-License-Identifier: Apache-2.0
"""The scoring ops in Triton. Not yet seen running on a GPU."""

from __future__ import annotations

from .triton_block import block_score

__all__ = ["block_score"]
