# SPDX-License-Identifier: Apache-2.0
"""What is measured: for every op, named shapes, the peer that people use today, and a check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..memory import PagePool
from .flex import compiled_flex

UNLIMITED = 2**62
HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 64


@dataclass(frozen=True)
class Dims:
    """What the shapes of a decoder follow from."""

    heads: int = HEADS
    kv_heads: int = KV_HEADS
    dim: int = DIM
    hidden: int = 4096
    wide: int = 14336


LLAMA_8B = Dims()
MODELS = {
    "llama-3-8b": LLAMA_8B,
    "qwen2.5-vl-7b": Dims(28, 4, 128, 3584, 18944),
    "wan-1.3b": Dims(12, 12, 128, 1536, 8960),
    "smollm2-135m": Dims(9, 3, 64, 576, 1536),
}
"""Models by whose sizes `headrace bench --shapes` measures."""


@dataclass
class Case:
    """One shape of one op. `check` gives (error, tolerance); bytes and FLOPs are the least."""

    op: str
    shape: str
    ours: Callable[[], object]
    check: Callable[[], tuple[float, float]]
    bytes: float
    flops: float
    peer: Callable[[], object] | None = None
    peer_name: str = ""
    others: dict[str, Callable[[], object]] = field(default_factory=dict)


def rms_error(got: Tensor, want: Tensor) -> float:
    """RMS of the difference over the RMS of the fp64 reference; NaN in either gives infinity."""
    got, want = got.double(), want.double()
    error = ((got - want).square().mean() / want.square().mean().clamp(min=1e-60)).sqrt().item()
    return error if math.isfinite(error) else math.inf


def bound_call(op: str, *args: object, **kwargs: object) -> tuple[dict, dict]:
    """Arguments of a call by name, and the sizes of its axes."""
    spec = ops.specs()[op]
    bound = spec.bind(*args, **kwargs)
    return bound, spec.check(bound)


def frequencies(dim: int, theta: float = 10000.0) -> Tensor:
    """RoPE frequencies of a head dimension, fp64 [dim / 2]."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def decode(
    batch: int,
    cached: int,
    dtype: torch.dtype = torch.bfloat16,
    codes: torch.dtype | None = None,
    dims: Dims = LLAMA_8B,
) -> Case:
    """One query of each stream over `cached` tokens in shuffled pages, re-indexing on.

    With `codes` over pages of that format; the peer is then ours over pages of `dtype`.
    """
    heads, kv_heads, dim = dims.heads, dims.kv_heads, dims.dim
    pages = -(-cached // PAGE)
    k = torch.randn(batch, kv_heads, cached, dim).to(dtype)
    v = torch.randn(batch, kv_heads, cached, dim).to(dtype)
    q = torch.randn(batch, heads, dim).to(dtype)
    pool = PagePool(1, batch * pages, kv_heads, dim, PAGE, dtype)
    k_pages, v_pages = pool.k[0], pool.v[0]
    order = torch.randperm(batch * pages)
    inv_freq, rows = frequencies(dim), torch.arange(cached)
    entries = []
    for b in range(batch):
        mine = order[b * pages : (b + 1) * pages]
        origin = rows // 1024 * 1024  # pages share origins, as a stream's do
        where = torch.stack([mine[rows // PAGE], rows % PAGE, rows - origin], 1)
        ops.append(
            k[b].transpose(0, 1), v[b].transpose(0, 1), k_pages, v_pages, where, inv_freq=inv_freq
        )
        for i, page in enumerate(mine.tolist()):
            count, first = min(PAGE, cached - i * PAGE), i * PAGE
            entries.append([page, 0, count, first // 1024 * 1024, UNLIMITED, first, UNLIMITED])
    args = (
        q, k_pages, v_pages, torch.tensor(entries),
        torch.arange(0, batch * pages + 1, pages, dtype=torch.int32),
        torch.arange(batch + 1, dtype=torch.int32), torch.full((batch,), cached - 1),
    )  # fmt: skip
    bound, axes = bound_call("paged_attention", *args, inv_freq=inv_freq)
    spec = ops.specs()["paged_attention"]
    group = heads // kv_heads

    def check() -> tuple[float, float]:
        # The first stream and the last kv head say it for all, and fp64 stays affordable.
        got, _ = ops.paged_attention(*args, inv_freq=inv_freq)
        one = torch.tensor([0, 1], dtype=torch.int32)
        want, _ = spec.reference(
            q[:1, -group:].double(), k_pages[:, -1:], v_pages[:, -1:], args[3][:pages], one * pages,
            one, args[6][:1], None, inv_freq, dim**-0.5, 0.0, None,
        )  # fmt: skip
        return rms_error(got[:1, -group:], want), spec.tolerance(dtype, axes, bound)

    if codes is not None:
        return _over_codes(args, inv_freq, codes, f"B{batch} {short(cached)} cached")
    return Case(
        "paged_attention",
        f"decode {dtype_name(dtype)} B{batch} {short(cached)} cached",
        lambda: ops.paged_attention(*args, inv_freq=inv_freq),
        check,
        spec.bytes(axes, bound),
        spec.flops(axes, bound),
        lambda: F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True),
        "torch SDPA",
        {"re-indexing off": lambda: ops.paged_attention(*args)},
    )


def _over_codes(args: tuple[Tensor, ...], inv_freq: Tensor, codes: torch.dtype, shape: str) -> Case:
    """paged_attention over the same pages as codes, beside itself over the floats."""
    q, k_pages, v_pages, *rest = args
    top = 127 if codes == torch.int8 else 448
    scales: dict[str, Any] = {}
    pages = []
    for name, x, axis in (("k_scale", k_pages, 2), ("v_scale", v_pages, 3)):
        scales[name] = x.abs().amax(axis).float().clamp(min=1e-6) / top
        y = x.float().div_(scales[name].unsqueeze(axis))
        pages.append((y.round_() if codes == torch.int8 else y).to(codes))
    coded = (q, *pages, *rest)
    bound, axes = bound_call("paged_attention", *coded, inv_freq=inv_freq, **scales)
    spec, group = ops.specs()["paged_attention"], q.shape[1] // k_pages.shape[1]
    entries, ends, q_indptr, q_pos = rest

    def check() -> tuple[float, float]:
        got, _ = ops.paged_attention(*coded, inv_freq=inv_freq, **scales)
        want, _ = spec.reference(
            q[:1, -group:].double(), pages[0][:, -1:], pages[1][:, -1:], entries[: int(ends[1])],
            ends[:2], q_indptr[:2], q_pos[:1], None, inv_freq, q.shape[-1] ** -0.5, 0.0, None,
            k_scale=scales["k_scale"][:, -1:], v_scale=scales["v_scale"][:, -1:],
        )  # fmt: skip
        return rms_error(got[:1, -group:], want), spec.tolerance(q.dtype, axes, bound)

    return Case(
        "paged_attention",
        f"decode {dtype_name(codes)} {shape}",
        lambda: ops.paged_attention(*coded, inv_freq=inv_freq, **scales),
        check,
        spec.bytes(axes, bound),
        spec.flops(axes, bound),
        lambda: ops.paged_attention(*args, inv_freq=inv_freq),
        f"ours, {dtype_name(k_pages.dtype)} pages",
    )


def prefill(
    length: int, window: int, dtype: torch.dtype, flex: bool, dims: Dims = LLAMA_8B
) -> Case:
    """Causal prefill under a window with 4 sinks."""
    q = torch.randn(1, dims.heads, length, dims.dim).to(dtype)
    k = torch.randn(1, dims.kv_heads, length, dims.dim).to(dtype)
    v = torch.randn(1, dims.kv_heads, length, dims.dim).to(dtype)
    bound, axes = bound_call("attention", q, k, v, window=window, sinks=4)
    spec = ops.specs()["attention"]
    last, group = max(0, length - 300), dims.heads // dims.kv_heads

    def check() -> tuple[float, float]:
        got = cast(Tensor, ops.attention(q, k, v, window=window, sinks=4))
        want, _ = spec.reference(
            q[:, :group, last:].double(), k[:, :1].double(), v[:, :1].double(), window, 4, None,
            True, dims.dim**-0.5, 0.0,
        )  # fmt: skip
        return rms_error(got[:, :group, last:], want), spec.tolerance(dtype, axes, bound)

    return Case(
        "attention",
        f"prefill {dtype_name(dtype)} {short(length)} window {window} sinks 4",
        lambda: ops.attention(q, k, v, window=window, sinks=4),
        check,
        spec.bytes(axes, bound),
        spec.flops(axes, bound),
        _flex(q, k, v, window) if flex else _masked_sdpa(q, k, v, window),
        "FlexAttention" if flex else "torch SDPA, mask",
    )


def _flex(q: Tensor, k: Tensor, v: Tensor, window: int) -> Callable[[], object]:
    def seen(b: Tensor, h: Tensor, t: Tensor, j: Tensor) -> Tensor:
        return (j <= t) & ((t - j < window) | (j < 4))

    return compiled_flex(q, k, v, seen)


def _masked_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int) -> Callable[[], object]:
    t = torch.arange(q.shape[2])
    age = t[:, None] - t[None, :]
    mask = (age >= 0) & ((age < window) | (t[None, :] < 4))
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


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
        lambda: F.linear(x, w), "torch linear",
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
    angle = (rows[:, None].double() * inv_freq).float()
    cos, sin = angle.cos()[:, None].to(dtype), angle.sin()[:, None].to(dtype)

    def check() -> tuple[float, float]:
        want_k = torch.zeros(k_pages.shape, dtype=torch.float64)
        want_v = torch.zeros(v_pages.shape, dtype=torch.float64)
        spec.reference(k.double(), v.double(), want_k, want_v, where, inv_freq)
        ops.append(*args, inv_freq=inv_freq)
        error = max(rms_error(k_pages, want_k), rms_error(v_pages, want_v))
        return error, spec.tolerance(dtype, axes, bound)

    def peer() -> None:
        a, b = k[..., : dims.dim // 2], k[..., dims.dim // 2 :]
        k_dense.copy_(torch.cat([a * cos - b * sin, b * cos + a * sin], -1))
        v_dense.copy_(v)

    return Case(
        "append", f"{dtype_name(dtype)} {tokens} tokens",
        lambda: ops.append(*args, inv_freq=inv_freq), check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch rotate + copy",
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
    )  # fmt: skip


def cases(op: str | None, quick: bool) -> Iterator[Case]:
    """Cases of one op or of all, made one at a time: some hold gigabytes."""
    from . import adapters, evictions, masses, scores, sequences, sparse, survivors

    bf16, f32 = torch.bfloat16, torch.float32
    i8, e4m3 = torch.int8, torch.float8_e4m3fn
    decodes: list[tuple] = [(1, 4096), (8, 4096), (1, 4096, bf16, i8)]
    prefills = [(bf16, 2048, 512)]
    linears = [(1, 2048, 2048), (256, 256, 1024)]
    chunks = [256]
    clips, rings = [(2, 220)], [(8, 1)]
    mixes = [(64, 64, 1024), (256, 4, 1024)]
    masks, blocks = [(bf16, 2048)], [(bf16, 2048, True)]
    hstus: list[tuple[int, ...]] = [(1024, 256)]
    recalls = [(2**17, 1)]
    screens, tokens = [(270, 480, 14, 4), (270, 480, 0, 4)], (1000, 256)
    choices: list[tuple] = [(64, 196, 60), (1, 2**17, 512), (1, 2**14, 0, "mass")]
    if not quick:
        decodes = [(b, c) for c in (1024, 4096, 16384, 65536) for b in (1, 2, 8)]
        decodes += [(b, 65536, bf16, c) for b in (1, 2, 4) for c in (i8, e4m3)]
        prefills = [(d, n, w) for d in (bf16, f32) for n in (4096, 16384) for w in (512, 2048)]
        linears = [(1, 256, 1024), (256, 256, 1024), (1, 4096, 4096), (64, 4096, 4096)]
        chunks = [1, 256, 4096]
        clips = [(1, 220), (1, 880), (4, 880)]
        rings = [(64, 1), (8, 64), (1, 1)]
        mixes = [(64, 64, 4096), (512, 8, 4096), (1, 1, 4096), (8, 8, 4096), (64, 1, 4096)]
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
        "gated_delta_rule": [partial(sequences.gated_delta_rule, t) for t in chunks],
        "hstu_attention": [partial(sequences.hstu_attention, *shape) for shape in hstus],
        "frame_delta_rule": [partial(sequences.frame_delta_rule, n, t) for n, t in clips],
        "linear_attention": [partial(sequences.linear_attention, t) for t in chunks],
        "causal_conv": [partial(sequences.causal_conv, t, 4096) for t in chunks],
        "paged_attention": [partial(decode, *shape) for shape in decodes],
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
            *(partial(adapters.rows, *mixes[0], bits=bits) for bits in (8, 4)),
            *(partial(adapters.without, n, mixes[0][2]) for n in (1, 64)),
        ],
    }
    for name, make in makers.items():
        if op in (None, name):
            for one in make:
                yield one()


def of_model(dims: Dims, op: str | None, quick: bool) -> Iterator[Case]:
    """Cases by the sizes of a model, made one at a time: its attention, products and adapters."""
    from . import adapters

    bf16, f32 = torch.bfloat16, torch.float32
    width = dims.hidden
    cached = [(1, 4096)] if quick else [(b, c) for c in (1024, 16384) for b in (1, 8)]
    lengths = [2048] if quick else [4096, 16384]
    fed = [1, 256] if quick else [1, 16, 256, 4096]
    qkv = (dims.heads + 2 * dims.kv_heads) * dims.dim
    products = [
        (width, qkv),
        (dims.heads * dims.dim, width),
        (width, dims.wide),
        (dims.wide, width),
    ]
    rows = [1] if quick else [1, 64]
    sized: dict[str, list[Callable[[], Case]]] = {
        "paged_attention": [partial(decode, b, c, dims=dims) for b, c in cached],
        "attention": [partial(prefill, n, 512, bf16, not quick, dims) for n in lengths],
        "append": [partial(append, n, bf16, dims) for n in fed],
        "merge_states": [partial(merge_states, n, f32, dims) for n in fed],
        "linear": [partial(linear, n, *product) for product in products for n in rows],
        "lora_rows": [partial(adapters.rows, n, n, width) for n in rows],
    }
    for name, make in sized.items():
        if op in (None, name):
            for one in make:
                yield one()


def dtype_name(dtype: torch.dtype) -> str:
    """As in the names of shapes."""
    kind = {torch.int8: "int", torch.bfloat16: "bf"}.get(dtype, "fp")
    return f"{kind}{8 * dtype.itemsize}"


def short(n: int) -> str:
    """A length, in k where it is whole."""
    return f"{n // 1024}k" if n % 1024 == 0 else str(n)
