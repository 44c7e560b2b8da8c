# SPDX-License-Identifier: Apache-2.0
"""What a stock model with a StreamingCache must equal: one dense forward over the whole history."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ...memory import Region
from ...streams import InCache
from ...streams.positions import Positions
from .families import Attention, attention_of

BLOCK = 64
"""Queries whose distances to all keys are in memory at a time."""
_NAME = "headrace_oracle"


@torch.no_grad()
def oracle(
    model: PreTrainedModel,
    input_ids: Tensor,
    memory: Region,
    positions: Positions | None = None,
    dtype: torch.dtype = torch.float64,
    rope_length: int | None = None,
) -> Tensor:
    """Logits [B, T, vocab] after each token of input_ids int64 [B, T], none of them padding.

    Of a model without a head, its last hidden states.

    Positions are those of text; for M-RoPE with images see the model's own attention with a mask.
    Query t sees exactly what `memory` keeps for it, and what the layer's own sliding window leaves
    of that, at the distances that `positions` (InCache() if None) gives, with the frequencies of
    rope_length as StreamingCache has it. A copy of the model runs
    in `dtype`, without cache or page; time and memory are quadratic in T.
    """
    positions = positions or InCache()
    attention = attention_of(model.config, memory, positions, rope_length, "oracle")
    dense = _Dense(attention, memory, positions)
    AttentionInterface.register(_NAME, dense)
    AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
    twin = copy.deepcopy(model).to(dtype).eval()
    twin.set_attn_implementation(_NAME)
    if hasattr(twin, "set_experts_implementation"):
        twin.set_experts_implementation("eager")  # others know no fp64
    for part in twin.modules():
        if isinstance(part, PreTrainedModel) and hasattr(part, "rotary_emb"):
            part.rotary_emb.register_forward_hook(dense.hear)
    return twin(input_ids, use_cache=False)[0]


class _Dense:
    def __init__(self, attention: Attention, memory: Region, positions: Positions) -> None:
        self._of, self._memory, self._positions = attention, memory, positions

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        number = torch.arange(query.shape[2], device=query.device)
        q, k = (self._turned_back(x) for x in (query, key))
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        sliding = self._of.sliding[module.layer_idx]
        outs = []
        for rows in number.split(BLOCK):
            near, far = rows[:, None], number[None, :]
            seen = self._memory.keeps(near, far)
            distance = self._positions.distance(near, far, seen)
            if sliding is not None:
                seen = seen & (near - far < sliding)
            logits = self._products(q[:, :, rows], k, distance) * (scaling or q.shape[-1] ** -0.5)
            if softcap:
                logits = softcap * (logits / softcap).tanh()
            logits = logits.masked_fill(~seen, -torch.inf)
            if s_aux is not None:
                sink = s_aux.to(logits)[None, :, None, None].expand(*logits.shape[:3], 1)
                logits = torch.cat([logits, sink], -1)
            outs.append(logits.softmax(-1)[..., : len(number)] @ v)
        return torch.cat(outs, 2).transpose(1, 2).contiguous(), None

    def hear(self, rotary: Any, args: Any, turned: tuple[Tensor, Tensor]) -> None:
        """The cosines and sines that queries and keys of all layers are turned by."""
        self._turned = turned

    def _turned_back(self, x: Tensor) -> Tensor:
        """Turned by the negative of the model's angles; its gain on both sides taken off."""
        size = len(self._of.inv_freq)
        cos, sin = (y[..., :size].reshape(-1, 1, x.shape[2], size) for y in self._turned)
        head, tail = x[..., : 2 * size], x[..., 2 * size :]
        turned = torch.complex(*head.chunk(2, -1)) / torch.complex(cos, sin)
        return torch.cat([turned.real, turned.imag, tail], -1)

    def _products(self, q: Tensor, k: Tensor, distance: Tensor) -> Tensor:
        """[B, H, t, T]: products of queries and keys that are `distance` [t, T] apart."""
        size = len(self._of.inv_freq)
        angle = distance[..., None].double() * self._of.inv_freq.to(q.device)
        turn = torch.polar(torch.full_like(angle, self._of.gain), angle).to(_complex(q.dtype))
        a, b = (torch.complex(*x[..., : 2 * size].chunk(2, -1)) for x in (q, k))
        turned = torch.einsum("bhti,bhji,tji->bhtj", a, b.conj(), turn).real
        return turned + q[..., 2 * size :] @ k[..., 2 * size :].mT


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64
