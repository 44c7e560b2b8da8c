# SPDX-License-Identifier: Apache-2.0
"""What a config of transformers says of its attention, as far as a stream needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ...errors import bad_type, bad_value, unsupported
from ...memory import UNLIMITED, Region, Spill
from ...memory.regions import compile_plan
from ...ops.rope import sections
from ...streams import InCache
from ...streams.positions import Positions

FAMILIES = {
    "gemma": "GemmaRotaryEmbedding",
    "gpt_neox": "GPTNeoXRotaryEmbedding",
    "gpt_oss": "GptOssRotaryEmbedding",
    "llama": "LlamaRotaryEmbedding",
    "mistral": "MistralRotaryEmbedding",
    "phi": "PhiRotaryEmbedding",
    "phi3": "Phi3RotaryEmbedding",
    "qwen2": "Qwen2RotaryEmbedding",
    "qwen2_5_vl_text": "Qwen2_5_VLRotaryEmbedding",
    "qwen2_vl_text": "Qwen2VLRotaryEmbedding",
    "qwen3": "Qwen3RotaryEmbedding",
}
"""model_type of a text config, and the class of its rotary embedding. Listed is what is tested."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "mrope", "dynamic", "longrope")
BY_LENGTH = ("dynamic", "longrope")
"""Types that have other frequencies at other lengths; a stream has those of one length for ever."""


@dataclass(frozen=True)
class Attention:
    """A config in the terms of a stream.

    sliding: for each layer the tokens that its queries see, themselves included; None for all.
    rotary: the model's own rotary embedding, made from the config. inv_freq fp64 [R], radians per
    position as the model has them; gain: what turning multiplies a product of query and key by.
    freq_axis: with M-RoPE, int32 [R], the axis of position that turns each frequency; else None.
    by_length: the model's own frequencies depend on what it reads, and has read.
    """

    model_type: str
    sliding: tuple[int | None, ...]
    rotary: Any
    inv_freq: Tensor
    gain: float
    freq_axis: Tensor | None
    by_length: bool = False


def attention_of(
    config: Any,
    memory: Region,
    positions: Positions,
    rope_length: int | None = None,
    op: str = "StreamingCache",
) -> Attention:
    """Reads a config. TypeError, ValueError or NotImplementedError naming what is not supported.

    rope_length: as of StreamingCache; None is what the memory can hold.
    """
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
    inv_freq, gain = rotary.inv_freq, rotary.attention_scaling
    if rope in BY_LENGTH:
        length = _length(memory, positions, rope_length, rope, op)
        inv_freq, gain = ROPE_INIT_FUNCTIONS[rope](config, torch.device("cpu"), seq_len=length)
    elif rope_length is not None:
        expected = f"None, but for the RoPE types {', '.join(BY_LENGTH)}"
        raise bad_value(op, "rope_length", expected, rope_length)
    return Attention(
        kind,
        _sliding(config, op),
        rotary,
        inv_freq.double(),
        float(gain) ** 2,
        sections(len(inv_freq), parameters["mrope_section"]) if multimodal else None,
        rope in BY_LENGTH,
    )


def _length(memory: Region, positions: Positions, given: int | None, rope: str, op: str) -> int:
    """Tokens that a query may see at different positions, itself included."""
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise bad_value(op, "rope_length", "1 token or more", given)
        return given
    cap = UNLIMITED
    if not isinstance(memory, Spill) and isinstance(positions, InCache):
        cap = positions.place(compile_plan(memory)).cap
    if cap >= UNLIMITED:
        what = f"{positions!r} and {memory!r}"
        hint = "its frequencies depend on the length, and these set no bound to it"
        raise bad_value(op, "rope_length", f"a number of tokens for RoPE {rope}", what, hint)
    return cap + 1


def _sliding(config: Any, op: str) -> tuple[int | None, ...]:
    sizes: list[int | None] = []
    for kind, options in zip(*get_layer_types_and_kwargs(config), strict=True):
        if kind not in ("full_attention", "sliding_attention"):
            expected = "the layer types full_attention, sliding_attention"
            raise unsupported(op, "config", expected, kind)
        sizes.append(options.get("sliding_window"))
    return tuple(sizes)
