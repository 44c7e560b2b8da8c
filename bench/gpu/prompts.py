# SPDX-License-Identifier: Apache-2.0
"""Attention of whole prompts on a GPU: inputs, peers and checks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from headrace import ops
from headrace.bench.case import Dims

from . import peers as others
from .attention import USUAL, flex
from .measure import Bench
from .work import Step

LONG = 32768  # tokens up to which a prompt is attended to as a whole


def _prompt(bench: Bench, tokens: int, dims: Dims, **more: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        heads = (dims.heads, dims.kv_heads, dims.kv_heads)
        made = (bench.randn(1, n, tokens, dims.dim) for n in heads)
        return dict(zip("qkv", made, strict=True)) | more

    return make


def _tail(s: dict, out: torch.Tensor, rows: int, *options: Any) -> list:
    """The last rows of a prompt beside the reference of these alone."""
    q, k, v = s["q"][:, :, -rows:].double(), s["k"].double(), s["v"].double()
    want = ops.specs()["attention"].reference(q, k, v, *options)
    return [(out[:, :, -rows:], want[0])]


def prefill(bench: Bench, tokens: int, window: int, dims: Dims = USUAL) -> None:
    """Causal attention of a whole prompt under a window with 4 sinks."""

    def seen(b, h, i, j):
        return (j <= i) & ((i - j < window) | (j < 4))

    @functools.cache  # where a peer needs it: of a long prompt it takes gigabytes
    def mask() -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(seen, None, None, tokens, tokens, device=bench.device)

    def tail(s: dict, out: torch.Tensor) -> list:
        options = (window, 4, None, True, dims.dim**-0.5, 0.0)
        return _tail(s, out, min(64, tokens), *options)

    peers = others.prefill(window)
    if tokens <= 2 * LONG:
        peers["flex"] = lambda s: flex(bench)(
            s["q"], s["k"], s["v"], block_mask=mask(), enable_gqa=True
        )
    if tokens <= LONG:
        peers["sdpa full causal"] = lambda s: F.scaled_dot_product_attention(
            s["q"], s["k"], s["v"], is_causal=True, enable_gqa=True
        )
    label = f"prefill {tokens} window {window} + 4 sinks"
    label += "" if dims == USUAL else f" {dims.heads} over {dims.kv_heads} heads of {dims.dim}"
    make = _prompt(bench, tokens, dims, window=window, sinks=4)
    check = lambda s, out: tail(s, out[0])  # noqa: E731
    bench.add("attention", label, make, peers, check, {"flex": tail})


def sparse(bench: Bench, tokens: int) -> None:
    """Causal attention of a whole prompt over a fifth of its blocks; the peer sees the same."""
    blocks = -(-tokens // 64)
    chosen = torch.rand(1, USUAL.heads, blocks, blocks, device=bench.device) < 0.2
    chosen |= torch.eye(blocks, dtype=torch.bool, device=bench.device)

    def seen(b, h, i, j):
        return (j <= i) & chosen[0, h, i // 64, j // 64]

    @functools.cache
    def mask() -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(seen, None, USUAL.heads, tokens, tokens, device=bench.device)

    def tail(s: dict, out: torch.Tensor) -> list:
        scale = USUAL.dim**-0.5
        options = (None, 0, None, True, scale, 0.0, chosen[:, :, -1:], 64)
        return _tail(s, out, tokens % 64 or 64, *options)

    peers: dict[str, Step] = {
        "flex": lambda s: flex(bench)(s["q"], s["k"], s["v"], block_mask=mask(), enable_gqa=True),
        "ours, dense": lambda s: ops.attention(s["q"], s["k"], s["v"]),
    }
    make = _prompt(bench, tokens, USUAL, block_mask=chosen)
    check = lambda s, out: tail(s, out[0])  # noqa: E731
    label = f"prefill {tokens} of a fifth of the blocks"
    bench.add("attention", label, make, peers, check, {"flex": tail})


def pooled_block_mask(bench: Bench, tokens: int) -> None:
    """The mask of a prompt."""

    def make() -> dict[str, Any]:
        return {n: x for n, x in _prompt(bench, tokens, USUAL)().items() if n != "v"}

    spec = ops.specs()["pooled_block_mask"]

    def eager(s: dict) -> torch.Tensor:
        return spec.reference(s["q"], s["k"], 0.2, None, 64, None, 0, 0, True)

    def check(s: dict, out: torch.Tensor) -> bool:  # but for blocks that are as good as one another
        want = eager({n: x.double() for n, x in s.items()})
        return bool((out != want).double().mean() < 1e-3)

    bench.add("pooled_block_mask", f"{tokens} tokens", make, {"eager": eager}, check)
