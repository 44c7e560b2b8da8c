# SPDX-License-Identifier: Apache-2.0
"""The ops, as functions on tensors or numpy arrays and as `torch.ops.headrace.<name>`."""

from . import rope
from .append import append
from .append_absorb import append_absorb
from .assign import assign
from .attention import attention
from .attention_mass import attention_mass
from .block_score import block_score
from .causal_conv import causal_conv
from .compact import compact
from .compact_inplace import compact_inplace
from .frame_delta_rule import frame_delta_rule
from .gated_delta_rule import gated_delta_rule
from .hstu_attention import hstu_attention
from .linear import linear
from .linear_attention import linear_attention
from .lora import lora
from .lora_rows import lora_rows
from .merge_states import merge_states
from .paged_attention import paged_attention
from .pooled_block_mask import pooled_block_mask
from .registry import specs
from .scatter_back import scatter_back
from .segment_reduce import segment_reduce
from .select import select
from .similarity import similarity

__all__ = [
    "append",
    "append_absorb",
    "assign",
    "attention",
    "attention_mass",
    "block_score",
    "causal_conv",
    "compact",
    "compact_inplace",
    "frame_delta_rule",
    "gated_delta_rule",
    "hstu_attention",
    "linear",
    "linear_attention",
    "lora",
    "lora_rows",
    "merge_states",
    "paged_attention",
    "pooled_block_mask",
    "rope",
    "scatter_back",
    "segment_reduce",
    "select",
    "similarity",
    "specs",
]
