# SPDX-License-Identifier: Apache-2.0
"""Peers from other packages and from torch's compiler, and which of them are not there."""

from __future__ import annotations

import inspect
import os
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]

WANTED = {
    "transformers": "stock caches: pip install 'headrace[transformers]'",
    "peft": "its mixed batch of adapters: pip install peft",
}
"""Packages whose ops are peers on a CPU, and how to get them."""

ON_A_GPU = {
    "flash_attn": "flash-attention",
    "flashinfer": "FlashInfer",
    "fla": "flash-linear-attention",
    "vllm": "the Triton LoRA kernels of vLLM",
}
"""Packages whose kernels are peers on a GPU only."""


def missing() -> list[str]:
    """One line for each peer that is not there: what it is, and how to get it."""
    lines = [f"{name}, {how}" for name, how in WANTED.items() if find_spec(name) is None]
    if not compiles():
        lines.append("FlexAttention and torch.compile, which need a C++ compiler: install g++")
    if not torch.cuda.is_available():
        names = ", ".join(ON_A_GPU.values())
        lines.append(f"{names}, which need a GPU: python scripts/gpu_check.py")
    return lines


def compiles() -> bool:
    """Whether torch finds a C++ compiler."""
    names = (os.environ.get("CXX") or "g++", "clang++")
    return any(shutil.which(name) is not None for name in names)


def compiled(f: Callable[..., Any], name: str = "torch, compiled") -> dict[str, Callable[..., Any]]:
    """A torch expression as torch.compile makes it; empty where there is no compiler."""
    if not compiles():
        return {}
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # a pool of compilers would start beside the first timings
    torch._dynamo.reset()  # past eight shapes it would run uncompiled
    return {name: torch.compile(f, dynamic=False)}


def of_transformers(name: str) -> Callable[..., Any] | None:
    """A function of the gated delta nets of transformers, in plain torch, not what it would fetch
    or take from another package in its place; None without it."""
    if find_spec("transformers") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it tries
        from transformers.models.qwen3_next import modeling_qwen3_next as model

    found: Any = getattr(model, name, None)
    return None if found is None else inspect.unwrap(found)


def fla_chunks() -> Callable[..., Any] | None:
    """The chunked gated delta rule of flash-linear-attention in plain torch; None without it."""
    if find_spec("fla") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        from fla.ops.gated_delta_rule import naive

    found: Callable[..., Any] = naive.naive_chunk_gated_delta_rule
    return found


def peft_rows(
    a: Tensor, b: Tensor, scale: Tensor, own: Tensor, x: Tensor, y: Tensor
) -> dict[str, Run]:
    """PEFT's mixed batch: row i of x [T, K] with adapter own[i] of a [S, R, K], b [S, R, N], added
    to y [T, N].

    Its layer sits on a base that gives zeros without a product, so that only the adapters' part is
    timed. Empty without PEFT.
    """
    if find_spec("peft") is None:
        return {}
    import peft

    class Nothing(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(len(x), self.out_features)

    width, out, rank = x.shape[1], b.shape[2], a.shape[1]
    site: Any = Nothing(1, 1, bias=False)
    site.in_features, site.out_features = width, out
    model = torch.nn.ModuleDict({"site": site})
    used = own.unique().tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is an adapter already
        for s in used:
            kept = peft.LoraConfig(r=rank, target_modules="site")
            peft.inject_adapter_in_model(kept, model, adapter_name=f"a{s}")
    layer: Any = model["site"]
    for s in used:
        layer.scaling[f"a{s}"] = float(scale[s])
        layer.lora_A[f"a{s}"].weight = torch.nn.Parameter(a[s])
        layer.lora_B[f"a{s}"].weight = torch.nn.Parameter(b[s].mT.contiguous())
    names = [f"a{s}" for s in own.tolist()]
    layer.eval()
    return {"PEFT, mixed batch": lambda: y.add_(layer(x, adapter_names=names))}


def caches(rotated: Callable[[], tuple[Tensor, Tensor]], window: int) -> dict[str, Run]:
    """Stock transformers caches, full, that take what `rotated` gives, keys and values
    [1, H, T, D]: one that slides over `window` tokens, one of a fixed size whose every call starts
    anew. Empty without transformers.
    """
    if find_spec("transformers") is None:
        return {}
    from transformers.cache_utils import DynamicSlidingWindowLayer, StaticLayer

    k, v = rotated()
    sliding, static = DynamicSlidingWindowLayer(window), StaticLayer(max(window, k.shape[2]))
    sliding.update(*(x.repeat(1, 1, -(-window // x.shape[2]), 1) for x in (k, v)))

    def slide() -> object:
        return sliding.update(*rotated())[0][0, :, -k.shape[2] :].transpose(0, 1)

    def fixed() -> object:
        if static.is_initialized:
            static.cumulative_length.zero_()
        return static.update(*rotated())[0][0, :, : k.shape[2]].transpose(0, 1)

    return {"transformers, sliding cache": slide, "transformers, static cache": fixed}
