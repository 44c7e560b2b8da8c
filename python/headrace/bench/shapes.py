# SPDX-License-Identifier: Apache-2.0
"""What is measured: for every op, named shapes, the peer that people use today, and a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .attention import decode, prefill
from .case import LLAMA_8B, PAGE, Case, Dims, bound_call, dtype_name, frequencies, rms_error
from .peers import Run, caches, compiled


def linear(tokens: int, depth: int, outputs: int, dtype: torch.dtype = torch.float32) -> Case:
    """A projection of a chunk of `tokens`."""
    x, w = torch.randn(tokens, depth).to(dtype), torch.randn(outputs, depth).to(dtype)
    bound, axes = bound_call("linear", x, w)
    spec = ops.specs()["linear"]

    def check() -> tuple[float, float]:
        want = spec.reference(x.double(), w.double(), None)
        return rms_error(ops.linear(x, w), want), spec.tolerance(dtype, axes, bound)

    return Case(
        "linear", f"{dtype_name(dtype)} [{tokens}, {depth}] x [{outputs}, {depth}]",
        lambda: ops.linear(x, w), check, spec.bytes(axes, bound), spec.flops(axes, bound),
        lambda: F.linear(x, w), "torch linear", product=dtype, reads=w,
    )  # fmt: skip


def append(tokens: int, dtype: torch.dtype = torch.bfloat16, dims: Dims = LLAMA_8B) -> Case:
    """Writing a chunk into pages, keys rotated on the way. The peer rotates and copies in torch."""
    pages = -(-tokens // PAGE) + 1
    k = torch.randn(tokens, dims.kv_heads, dims.dim).to(dtype)
    v = torch.randn(tokens, dims.kv_heads, dims.dim).to(dtype)
    k_pages = torch.zeros(pages, dims.kv_heads, dims.dim, PAGE, dtype=dtype)
    v_pages = torch.zeros(pages, dims.kv_heads, PAGE, dims.dim, dtype=dtype)
    rows, inv_freq = torch.arange(tokens), frequencies(dims.dim)
    where = torch.stack([rows // PAGE, rows % PAGE, rows % 1024], 1)
    args = (k, v, k_pages, v_pages, where)
    bound, axes = bound_call("append", *args, inv_freq=inv_freq)
    spec = ops.specs()["append"]
    k_dense, v_dense = torch.zeros_like(k), torch.zeros_like(v)
    angle = (where[:, 2:].double() * inv_freq).float()
    cos, sin = angle.cos()[:, None].to(dtype), angle.sin()[:, None].to(dtype)

    def check() -> tuple[float, float]:
        want_k = torch.zeros(k_pages.shape, dtype=torch.float64)
        want_v = torch.zeros(v_pages.shape, dtype=torch.float64)
        spec.reference(k.double(), v.double(), want_k, want_v, where, inv_freq)
        ops.append(*args, inv_freq=inv_freq)
        error = max(rms_error(k_pages, want_k), rms_error(v_pages, want_v))
        return error, spec.tolerance(dtype, axes, bound)

    def rotated() -> Tensor:
        a, b = k[..., : dims.dim // 2], k[..., dims.dim // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def peer() -> Tensor:
        k_dense.copy_(rotated())
        v_dense.copy_(v)
        return k_dense

    def written() -> Tensor:
        ops.append(*args, inv_freq=inv_freq)
        return k_pages[where[:, 0], :, :, where[:, 1]]

    def stock(compile: bool) -> dict[str, Run]:
        heads_first = lambda: (rotated().transpose(0, 1)[None], v.transpose(0, 1)[None])  # noqa: E731
        return caches(heads_first, 4096)

    return Case(
        "append", f"{dtype_name(dtype)} {tokens} tokens",
        lambda: ops.append(*args, inv_freq=inv_freq), check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch rotate + copy",
        more=stock, results={"ours": written}, writes=k.nbytes + v.nbytes,
    )  # fmt: skip


def merge_states(tokens: int, dtype: torch.dtype = torch.float32, dims: Dims = LLAMA_8B) -> Case:
    """Two partial attentions into one."""
    o_a, o_b = (torch.randn(tokens, dims.heads, dims.dim).to(dtype) for _ in range(2))
    lse_a, lse_b = torch.randn(tokens, dims.heads), torch.randn(tokens, dims.heads)
    args = (o_a, lse_a, o_b, lse_b)
    bound, axes = bound_call("merge_states", *args)
    spec = ops.specs()["merge_states"]

    def check() -> tuple[float, float]:
        want, _ = spec.reference(o_a.double(), lse_a.double(), o_b.double(), lse_b.double())
        return rms_error(ops.merge_states(*args)[0], want), spec.tolerance(dtype, axes, bound)

    return Case(
        "merge_states", f"{dtype_name(dtype)} {tokens} tokens, {dims.heads} heads",
        lambda: ops.merge_states(*args), check, spec.bytes(axes, bound), spec.flops(axes, bound),
        lambda: spec.reference(*args), "torch, eager",
        more=lambda compile: compiled(lambda: spec.reference(*args)) if compile else {},
        writes=o_a.nbytes,
    )  # fmt: skip


def cases(op: str | None, quick: bool) -> Iterator[Case]:
    """Cases of one op or of all, made one at a time: some hold gigabytes."""
    return (make() for make in to_make(op, quick))


def to_make(op: str | None, quick: bool) -> list[Callable[[], Case]]:
    """What makes each of them."""
    from . import (
        adapters,
        deltas,
        evictions,
        masses,
        prefixes,
        scores,
        sequences,
        sparse,
        survivors,
        wider,
    )  # fmt: skip

    bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
    i8, e4m3 = torch.int8, torch.float8_e4m3fn
    decodes: list[tuple] = [(1, 4096), (8, 4096), (1, 4096, bf16, i8)]
    alike = [(8, 1024, 128)]
    prefills = [(bf16, 2048, 512)]
    linears: list[tuple] = [(1, 2048, 2048), (256, 256, 1024), (64, 2048, 2048, bf16)]
    chunks = [256]
    clips, rings = [(2, 220)], [(8, 1)]
    mixes, coded = [(64, 64, 1024), (256, 4, 1024)], [(64, 8), (64, 4)]
    masks, blocks = [(bf16, 2048)], [(bf16, 2048, True)]
    hstus: list[tuple] = [(1024, 256)]
    recalls = [(2**17, 1)]
    screens, tokens = [(270, 480, 14, 4), (270, 480, 0, 4)], (1000, 256)
    choices: list[tuple] = [(64, 196, 60), (1, 2**17, 512), (1, 2**14, 0, "mass")]
    if not quick:
        decodes = [(b, c) for c in (1024, 4096, 16384, 65536) for b in (1, 2, 8)]
        decodes += [(b, 65536, bf16, c) for b in (1, 2, 4) for c in (i8, e4m3)]
        alike = [(32, 4096, 300)]
        prefills = [(d, n, w) for d in (bf16, f32) for n in (4096, 16384) for w in (512, 2048)]
        linears = [(1, 256, 1024), (256, 256, 1024), (1, 4096, 4096), (64, 4096, 4096)]
        linears += [(*shape, d) for shape in linears for d in (bf16, f16)]
        linears += [(512, 2048, 2048, d) for d in (bf16, f32)]
        linears += [(256, 4304, 1152, bf16)]  # of SigLIP: a depth that ends amid a vector
        chunks = [1, 256, 4096]
        clips = [(1, 220), (1, 880), (4, 880)]
        rings = [(64, 1), (8, 64), (1, 1)]
        mixes = [(64, 64, 4096), (512, 8, 4096), (1, 1, 4096), (8, 8, 4096), (64, 1, 4096)]
        coded = [(64, 8), (64, 4), (256, 4)]
        masks = [(d, n) for d in (bf16, f32) for n in (4096, 32768)]
        blocks = [(d, n, c) for d in (bf16, f32) for n in (4096, 8192) for c in (False, True)]
        recalls = [(10**6, 4)]  # together larger than a cache
        screens = [(1080, 1920, patch, 8) for patch in (14, 28, 0)]
        tokens = (10_000, 3584)
        choices = [(1, 10**6, 4096), (8, 15625, 64), (1024, 196, 60), (1, 10**6, 0, "mass")]
        hstus = [(8192, 512), (8192, 1024), (8192, 2048), (8192, 0), (8192, 2048, 16)]
    makers: dict[str, list[Callable[[], Case]]] = {
        "select": [partial(scores.select, *choice) for choice in choices],
        "block_score": [
            *(partial(scores.retrieve, *x, kind) for x in recalls for kind in scores.KINDS),
            *(partial(scores.bits, *x) for x in recalls),
        ],
        **masses.shapes(quick),
        "similarity": [
            *(partial(survivors.pixels, *screen) for screen in screens),
            partial(survivors.features, *tokens),
        ],
        "compact": [
            partial(survivors.prune, *tokens),
            *(partial(survivors.gather, *tokens, merged) for merged in (False, True)),
        ],
        "compact_inplace": [partial(survivors.compact_inplace, *tokens)],
        "scatter_back": [partial(survivors.scatter_back, *tokens)],
        "gated_delta_rule": [partial(deltas.gated_delta_rule, t) for t in chunks],
        "hstu_attention": [partial(sequences.hstu_attention, *shape) for shape in hstus],
        "frame_delta_rule": [partial(deltas.frame_delta_rule, n, t) for n, t in clips],
        "linear_attention": [partial(sequences.linear_attention, t) for t in chunks],
        "causal_conv": [partial(sequences.causal_conv, t, 4096) for t in chunks],
        "paged_attention": [
            *(partial(decode, *shape) for shape in decodes),
            *(partial(prefixes.shared, *shape) for shape in alike),
        ],
        "attention": [
            *(partial(prefill, n, w, d, flex=not quick) for d, n, w in prefills),
            *(partial(sparse.sparse, n, c, d, flex=not quick) for d, n, c in blocks),
        ],
        "pooled_block_mask": [partial(sparse.pooled_block_mask, n, d) for d, n in masks],
        "linear": [partial(linear, *shape) for shape in linears],
        "append": [partial(append, tokens) for tokens in chunks],
        "append_absorb": [partial(evictions.append_absorb, *shape) for shape in rings],
        "merge_states": [partial(merge_states, tokens) for tokens in chunks],
        "lora": [partial(adapters.stack, *mix) for mix in mixes],
        "lora_rows": [
            *(partial(adapters.rows, *mix) for mix in mixes),
            *(partial(adapters.rows, n, n, mixes[0][2], bits=bits) for n, bits in coded),
            *(partial(adapters.without, n, mixes[0][2]) for n in (1, 64)),
        ],
    }
    for name, more in ({} if quick else wider.shapes()).items():
        makers[name] += more
    return [make for name, some in makers.items() if op in (None, name) for make in some]
