# SPDX-License-Identifier: Apache-2.0
"""What a config of transformers says of its attention, as far as a stream needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor
from transformers.cache_utils import get_layer_types_and_kwargs

from ...errors import bad_type, unsupported
from ...ops.rope import sections

FAMILIES = {
    "gemma": "GemmaRotaryEmbedding",
    "gpt_neox": "GPTNeoXRotaryEmbedding",
    "gpt_oss": "GptOssRotaryEmbedding",
    "llama": "LlamaRotaryEmbedding",
    "mistral": "MistralRotaryEmbedding",
    "phi": "PhiRotaryEmbedding",
    "qwen2": "Qwen2RotaryEmbedding",
    "qwen2_5_vl_text": "Qwen2_5_VLRotaryEmbedding",
    "qwen2_vl_text": "Qwen2VLRotaryEmbedding",
    "qwen3": "Qwen3RotaryEmbedding",
}
"""model_type of a text config, and the class of its rotary embedding. Listed is what is tested."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "mrope")
"""Types whose frequencies are the same at every length."""


@dataclass(frozen=True)
class Attention:
    """A config in the terms of a stream.

    sliding: for each layer the tokens that its queries see, themselves included; None for all.
    rotary: the model's own rotary embedding, made from the config. inv_freq fp64 [R], radians per
    position as the model has them; gain: what turning multiplies a product of query and key by.
    freq_axis: with M-RoPE, int32 [R], the axis of position that turns each frequency; else None.
    """

    model_type: str
    sliding: tuple[int | None, ...]
    rotary: Any
    inv_freq: Tensor
    gain: float
    freq_axis: Tensor | None


def attention_of(config: Any, op: str = "StreamingCache") -> Attention:
    """Reads a config. TypeError or NotImplementedError naming what is not supported."""
    if not hasattr(config, "get_text_config"):
        raise bad_type(op, "config", "a config of transformers", type(config).__name__)
    config = config.get_text_config(decoder=True)
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES or getattr(config, "is_encoder_decoder", False):
        raise unsupported(op, "config", f"the architectures {', '.join(FAMILIES)}", kind)
    parameters = getattr(config, "rope_parameters", None) or {}
    rope = parameters.get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise unsupported(op, "config", f"the RoPE types {', '.join(ROPE_TYPES)}", rope)
    multimodal = kind.endswith("_vl_text")
    if multimodal and "mrope_section" not in parameters:
        raise unsupported(op, "config", "rope_parameters with an mrope_section", parameters)
    module = import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    rotary = getattr(module, FAMILIES[kind])(config)
    return Attention(
        kind,
        _sliding(config, op),
        rotary,
        rotary.inv_freq.double(),
        float(rotary.attention_scaling) ** 2,
        sections(len(rotary.inv_freq), parameters["mrope_section"]) if multimodal else None,
    )


def _sliding(config: Any, op: str) -> tuple[int | None, ...]:
    sizes: list[int | None] = []
    for kind, options in zip(*get_layer_types_and_kwargs(config), strict=True):
        if kind not in ("full_attention", "sliding_attention"):
            expected = "the layer types full_attention, sliding_attention"
            raise unsupported(op, "config", expected, kind)
        sizes.append(options.get("sliding_window"))
    return tuple(sizes)
