# SPDX-License-Identifier: Apache-2.0
"""The ops, as functions on tensors or numpy arrays and as `torch.ops.headrace.<name>`."""

from .append import append
from .attention import attention
from .hstu_attention import hstu_attention
from .linear import linear
from .merge_states import merge_states
from .paged_attention import paged_attention
from .registry import specs

__all__ = [
    "append",
    "attention",
    "hstu_attention",
    "linear",
    "merge_states",
    "paged_attention",
    "specs",
]
