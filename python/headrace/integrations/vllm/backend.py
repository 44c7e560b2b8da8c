# SPDX-License-Identifier: Apache-2.0
"""The classes that vLLM wants of an attention backend. Importing this imports vLLM."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from ...errors import bad_value, unsupported
from ...memory import Plan, Sink, Window
from ...memory.regions import compile_plan
from ...ops import rope
from ...streams import InCache
from .step import Step, attend, planned

FAMILIES = ("gemma", "gpt_neox", "gpt_oss", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3")
"""model_type of the models whose RoPE turns dimension i together with i + R, as the kernels do."""
DTYPES = ("auto", "float16", "bfloat16")
OP = "vllm.Backend"


class Backend(AttentionBackend):
    """Sinks, a window and re-indexing; see `headrace.integrations.vllm`."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[Impl]:
        return Impl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Those in which a head of a block is one piece of memory."""
        return (KVCacheLayout.LBHNC, KVCacheLayout.BLHNC)

    @classmethod
    def supports_sink(cls) -> bool:
        """Learned ones."""
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True


class Builder(AttentionMetadataBuilder[Step]):
    """The entries of a step, made on the host."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._plan = plan_of(vllm_config.additional_config)
        self._size = kv_cache_spec.block_size
        config = vllm_config.model_config.hf_text_config
        self._inv_freq = frequencies_of(config, kv_cache_spec.head_size)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Step:
        given = common_attn_metadata
        if given.causal is not True:
            raise unsupported(OP, "causal", "True", given.causal)
        starts = given.query_start_loc_cpu[: given.num_reqs + 1].numpy()
        return planned(
            self._plan,
            given.block_table_tensor[: given.num_reqs].cpu().numpy(),
            given.seq_lens[: given.num_reqs].cpu().numpy(),
            starts[1:] - starts[:-1],
            given.slot_mapping.long(),
            self._size,
            self._inv_freq,
        )


class Impl(AttentionImpl[Step]):
    """A layer."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        for name, value, fine in (
            ("alibi_slopes", alibi_slopes, alibi_slopes is None),
            ("kv_cache_dtype", kv_cache_dtype, kv_cache_dtype in DTYPES),
            ("attn_type", attn_type, attn_type == AttentionType.DECODER),
        ):
            if not fine:
                expected = "decoders without ALiBi, whose cache is not quantised"
                raise unsupported(OP, name, expected, value)
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self._sliding, self._softcap = sliding_window, logits_soft_cap or 0.0
        self._sinks = sinks
        self._shares = kv_sharing_target_layer_name is not None

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Step,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """query [T, Hq, D], key and value [T, Hkv, D]; writes output [T, Hq * D] and gives it."""
        if attn_metadata is None:  # a run that only measures memory
            return output.zero_()
        if output_scale is not None or output_block_scale is not None:
            raise unsupported(OP, "output_scale", "None", "a scale")
        n = attn_metadata.tokens
        own = not self._shares and key is not None
        o = attend(
            attn_metadata,
            query[:n],
            key[:n] if own else None,
            value[:n] if own else None,
            kv_cache,
            scale=self.scale,
            softcap=self._softcap,
            sink_logits=None if self._sinks is None else self._sinks.float().contiguous(),
            sliding=self._sliding,
        )
        output[:n].copy_(o.reshape(output[:n].shape))
        return output


def plan_of(additional: Any) -> Plan:
    """Of `additional_config`: {"headrace": {"sinks": 4, "window": 2044}}; all without it."""
    given = (additional or {}).get("headrace", {}) if isinstance(additional, dict) else {}
    if unknown := set(given) - {"sinks", "window"}:
        raise bad_value(OP, "additional_config", "sinks and window", sorted(unknown))
    window, sinks = Window(given.get("window")), given.get("sinks", 0)
    return InCache().place(compile_plan(Sink(sinks) + window if sinks else window))


def frequencies_of(config: Any, head_dim: int) -> Tensor:
    """By which the model turns queries and keys. NotImplementedError where it is not known how."""
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise unsupported(OP, "model", f"the architectures {', '.join(FAMILIES)}", kind)
    fields = dict(getattr(config, "rope_parameters", None) or {})
    if "mrope_section" in fields or fields.get("rope_type") in ("dynamic", "longrope", "mrope"):
        expected = "RoPE of one axis that is the same at every length"
        raise unsupported(OP, "model", expected, fields.get("rope_type"))
    # Queries and keys come with YaRN's factor on both; only the angles are of interest.
    return rope.frequencies(head_dim, scaling=fields)[0]
