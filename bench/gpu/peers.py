# SPDX-License-Identifier: Apache-2.0
"""Other people's kernels, each where its package is importable: {} or its line of the table."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Peers = dict[str, Callable[[dict[str, Any]], Any]]


def found(name: str) -> ModuleType | None:
    """A module, or None where it cannot be imported, for whatever reason."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None


def decode(page: int) -> Peers:
    """One query over `_k` and `_v` [B, Hkv, L, D] of contiguous bytes, no rotation."""
    peers: Peers = {}
    if flash := found("flash_attn"):

        def flash_decode(s: dict[str, Any]) -> Tensor:
            k, v = (s[n].transpose(1, 2) for n in ("_k", "_v"))
            return flash.flash_attn_with_kvcache(s["q"][:, None], k, v)

        peers["flash-attention"] = flash_decode
    if infer := found("flashinfer"):

        def flashinfer_decode(s: dict[str, Any]) -> Tensor:
            if "_plan" not in s:  # planning reads the host, so it stays out of the graph
                batch, heads, length, dim = s["_k"].shape
                per = length // page
                made = infer.BatchDecodeWithPagedKVCacheWrapper(
                    torch.empty(128 << 20, dtype=torch.uint8, device=s["q"].device), "HND"
                )
                starts = torch.arange(0, batch * per + 1, per, dtype=torch.int32)
                made.plan(
                    starts.to(s["q"].device),
                    torch.arange(batch * per, dtype=torch.int32, device=s["q"].device),
                    torch.full((batch,), page, dtype=torch.int32, device=s["q"].device),
                    s["q"].shape[1], heads, dim, page,
                    q_data_type=s["q"].dtype, kv_data_type=s["_k"].dtype,
                )  # fmt: skip
                pages = [
                    s[n].view(batch, heads, per, page, dim).transpose(1, 2).flatten(0, 1)
                    for n in ("_k", "_v")
                ]
                s["_plan"] = made, torch.stack([x.contiguous() for x in pages], 1)
            made, pages = s["_plan"]
            return made.run(s["q"], pages)

        peers["FlashInfer"] = flashinfer_decode
    return peers


def prefill(window: int) -> Peers:
    """Causal attention under a window without sinks: a little less than ours does."""
    flash = found("flash_attn")
    if flash is None:
        return {}

    def run(s: dict[str, Any]) -> Tensor:
        q, k, v = (s[n].transpose(1, 2) for n in "qkv")
        return flash.flash_attn_func(q, k, v, causal=True, window_size=(window - 1, 0))

    return {"flash-attention, no sinks": run}


def gated_delta(streams: int) -> Peers:
    """The chunked form, or the recurrent one for a token of each stream."""
    rule = found("fla.ops.gated_delta_rule")
    if rule is None:
        return {}

    def run(s: dict[str, Any]) -> Tensor:
        names = ("q", "k", "v", "log_decay", "beta")
        q, k, v, g, beta = (s[n].unflatten(0, (streams, -1)) for n in names)
        short = q.shape[1] == 1
        call = rule.fused_recurrent_gated_delta_rule if short else rule.chunk_gated_delta_rule
        state = s["state"]
        return call(q, k, v, g, beta, s["scale"], initial_state=state, output_final_state=True)[0]

    return {"flash-linear-attention": run}


def linear_attention(streams: int) -> Peers:
    """The chunked form on rows that are positive already, without the normaliser."""
    rule = found("fla.ops.linear_attn")
    if rule is None:
        return {}

    def run(s: dict[str, Any]) -> Tensor:
        q, k, v = (s[n].unflatten(0, (streams, -1)) for n in "qkv")
        return rule.chunk_linear_attn(
            q.relu(), k.relu(), v, normalize=False,
            initial_state=s["state"], output_final_state=True,
        )[0]  # fmt: skip

    return {"flash-linear-attention, no norm": run}


def lora(
    used: Tensor, weights: Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
) -> dict[str, Callable[[dict[str, Any], Tensor], Tensor]]:
    """vLLM's two Triton kernels for row i with adapter used[i] of a [S, R, K] and b [S, N, R],
    which add to y. Which row uses which is prepared before, as ours is."""
    punica = found("vllm.lora.ops.triton_ops")
    if punica is None:
        return {}

    def prepared(s: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, tuple[Any, ...]]:
        if "_punica" not in s:
            a, b = (w.contiguous() for w in weights(s))
            known = punica.LoRAKernelMeta.make(len(a), len(used), device=a.device)
            known.prepare_tensors(used.int())
            # Newer versions ask whether to begin a block for each adapter in use, or for all.
            asks = len(inspect.signature(known.meta_args).parameters) > 1
            told = known.meta_args(len(used), *((True,) if asks else ()))
            down = torch.empty(1, len(used), a.shape[1], dtype=torch.float32, device=a.device)
            s["_punica"] = a, b, down, told
        return s["_punica"]

    def run(s: dict[str, Any], y: Tensor) -> Tensor:
        a, b, down, told = prepared(s)
        punica.lora_shrink(s["x"], [a], down, *told, 1.0)
        punica.lora_expand(down, [b], y, *told, offset_start=0, add_inputs=True)
        return y

    return {"vLLM": run}
