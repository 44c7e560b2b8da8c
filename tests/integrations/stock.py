# SPDX-License-Identifier: Apache-2.0
"""A small stock model for every family that is supported."""

import functools

import torch
import transformers

BASE = {
    "vocab_size": 89,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # so that a wrong position or a missing token shows
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
MIXED = ["sliding_attention", "full_attention"]

MODELS = {
    "llama": ("Llama", {}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"head_dim": 32, "sliding_window": None}),
    "mistral-sliding": ("Mistral", {"sliding_window": 24}),
    "mistral-wide": ("Mistral", {"sliding_window": 70}),  # wider than the memory's window
    "qwen2": ("Qwen2", {}),
    "qwen2-mixed": (
        "Qwen2",
        {"layer_types": MIXED, "sliding_window": 19, "use_sliding_window": True},
    ),
    "qwen3": ("Qwen3", {"head_dim": 48}),
    "gemma": ("Gemma", {"head_dim": 64, "num_key_value_heads": 1}),
    "phi": ("Phi", {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default",
            "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "phi3": ("Phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
             "partial_rotary_factor": 0.75}}),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                 "partial_rotary_factor": 0.25}}),
    "gpt_oss": ("GptOss", {"head_dim": 32, "layer_types": MIXED, "sliding_window": 20,
                "num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": YARN}),
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.25, 1.5, 2.0] * 2,
        "long_factor": [1.0, 2.0, 5.0, 9.0, 14.0, 20.0, 28.0, 40.0]}  # fmt: skip
# RoPE that depends on the length, of 64 tokens in training.
BY_LENGTH = {
    "llama-dynamic": ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 64}),
    "phi3-longrope": ("Phi3", {"rope_parameters": LONG, "max_position_embeddings": 256,
                      "original_max_position_embeddings": 64}),
    "llama-longrope": ("Llama", {"max_position_embeddings": 256, "rope_parameters": {
                       **LONG, "original_max_position_embeddings": 64, "factor": 3.0}}),
}  # fmt: skip


@functools.cache
def model(name, **more):
    """Random weights, the same at every call; fp32."""
    family, options = {**MODELS, **BY_LENGTH}[name]
    config = getattr(transformers, f"{family}Config")(**{**BASE, **options, **more})
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # biases and sinks too
            if parameter.ndim == 1 and parameter.abs().max() == 0:
                parameter.normal_(std=0.3)
    return made
