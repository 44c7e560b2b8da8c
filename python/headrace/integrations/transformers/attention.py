# SPDX-License-Identifier: Apache-2.0
"""The attention implementation "headrace" and its mask, as transformers' interfaces want them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ...errors import bad_type, unsupported
from .cache import StreamingCache
from .layer import Offset, StreamingLayer

NAME = "headrace"
"""Of the attention implementation, in both registries."""


def register() -> None:
    """Makes `NAME` known to transformers. Importing the integration does it; twice is fine."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)


class Told(NamedTuple):
    """What a model's rotary embedding was given last, and what it gave."""

    position_ids: Tensor
    turned: tuple[Tensor, Tensor]


_told: dict[int, Told] = {}
"""By the id of a text config; only inside `attached`.

The attention layers of M-RoPE models are not told their positions along three axes, and the angles
of RoPE types that depend on the length are a matter of all that the model has read before."""


@contextmanager
def attached(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Runs the block with the model on this attention, then puts the former one back.

    Models with M-RoPE and with the RoPE types dynamic and longrope need it: their rotary embedding
    is listened to, by a hook, for the block. In it `generate` of Phi-3 goes on with a cache of ours
    where it would begin a new one, as the length passes that of its short factors.
    """
    if not isinstance(model, PreTrainedModel):
        raise bad_type("attached", "model", "a model of transformers", type(model).__name__)
    before = [
        (m.config, m.config._attn_implementation)
        for m in model.modules()
        if isinstance(m, PreTrainedModel)
    ]
    hooks = [
        m.rotary_emb.register_forward_hook(_listen(m.config), with_kwargs=True)
        for m in model.modules()
        if isinstance(m, PreTrainedModel) and hasattr(m, "rotary_emb")
    ]
    model.set_attn_implementation(NAME)
    mine = model.__dict__.get(_PREPARE)
    if isinstance(model, GenerationMixin):
        model.__dict__[_PREPARE] = _going_on(model)
    try:
        yield model
    finally:
        model.__dict__.pop(_PREPARE, None)
        if mine is not None:
            model.__dict__[_PREPARE] = mine
        for hook in hooks:
            hook.remove()
        for config, _ in before:
            _told.pop(id(config), None)
        for config, name in before:
            config._attn_implementation_internal = name


def _listen(config: Any) -> Callable[..., None]:
    def hook(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        _told[id(config)] = Told(ids, output)

    return hook


_PREPARE = "prepare_inputs_for_generation"


def _going_on(model: Any) -> Callable[..., Any]:
    """What the model does between the steps of `generate`, without dropping a StreamingCache."""
    own = getattr(model, _PREPARE)
    plain = functools.partial(getattr(GenerationMixin, _PREPARE), model)

    @functools.wraps(own)
    def prepare(input_ids: Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
        ours = isinstance(past_key_values, StreamingCache) and past_key_values.attention.by_length
        return (plain if ours else own)(input_ids, past_key_values=past_key_values, **kwargs)

    return prepare


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """For a StreamingCache which tokens are padding, [B, L] or None; for all else sdpa's mask."""
    if not isinstance(kv_offset, Offset):
        options = {} if mask_function is None else {"mask_function": mask_function}
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            attention_mask=attention_mask,
            use_vmap=use_vmap,
            **options,
            **kwargs,
        )
    if use_vmap:
        raise unsupported("StreamingCache", "mask", "causal and sliding masks", "another pattern")
    real = None if attention_mask is None else attention_mask[:, -q_length:].bool()
    if real is not None and bool(real.all()):
        real = None
    kv_offset.cache.announce(batch_size, q_length, real)
    return real


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_ids: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the pages of the StreamingCache that the keys went to; sdpa without one."""
    layer: StreamingLayer | None = getattr(key, "headrace", None)
    if layer is None:
        if s_aux is not None or softcap is not None:
            what = "learned sinks" if s_aux is not None else "a softcap"
            expected = "a StreamingCache as past_key_values"
            raise unsupported(NAME, "past_key_values", expected, f"none, with {what}")
        if is_causal is not None:
            kwargs["is_causal"] = is_causal
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise unsupported(NAME, "dropout", "0", dropout, "call model.eval()")
    if is_causal is False or not getattr(module, "is_causal", True):
        raise unsupported(NAME, "is_causal", "True", False)
    if attention_mask is not None and attention_mask.dim() != 2:
        raise unsupported(NAME, "attention_mask", "[B, L]", tuple(attention_mask.shape))
    if kwargs.get("output_attentions"):
        raise unsupported(NAME, "output_attentions", "False", True)
    turned = None
    spec = layer.cache.attention
    if spec.freq_axis is not None or spec.by_length:
        told = _told.get(id(module.config))
        if told is None:
            hint = "run it inside `with attached(model):`"
            got = "M-RoPE" if spec.freq_axis is not None else "RoPE that depends on the length"
            raise unsupported(NAME, "model", "models whose positions are known", got, hint)
        position_ids, turned = told
    with torch.no_grad():
        out = layer.cache.attend(
            layer.index,
            query.detach(),
            key.detach(),
            value.detach(),
            position_ids,
            turned,
            scale=scaling,
            softcap=softcap or 0.0,
            sink_logits=None if s_aux is None else s_aux.detach().float().contiguous(),
        )
    if torch.is_grad_enabled() and query.requires_grad:
        out = _Forward.apply(out, query)
    return out, None


class _Forward(torch.autograd.Function):
    """Says so where a gradient would be wrong."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, query: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise unsupported("StreamingCache", "backward", "forward passes", "a gradient")
