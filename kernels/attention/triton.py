# SPDX-License-Identifier: Apache-2.0
"""The attention ops in Triton. Not yet seen running on a GPU."""

from .triton_dense import attention
from .triton_paged import paged_attention
from .triton_state import append, merge_states

__all__ = ["append", "attention", "merge_states", "paged_attention"]
