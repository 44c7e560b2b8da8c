# SPDX-License-Identifier: Apache-2.0
"""What is measured: for every op, named shapes, the peer that people use today, and a check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops

UNLIMITED = 2**62
HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 64


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


def decode(batch: int, cached: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """One query of each stream over `cached` tokens in shuffled pages, re-indexing on."""
    pages = -(-cached // PAGE)
    k = torch.randn(batch, KV_HEADS, cached, DIM).to(dtype)
    v = torch.randn(batch, KV_HEADS, cached, DIM).to(dtype)
    q = torch.randn(batch, HEADS, DIM).to(dtype)
    k_pages = torch.zeros(batch * pages, KV_HEADS, DIM, PAGE, dtype=dtype)
    v_pages = torch.zeros(batch * pages, KV_HEADS, PAGE, DIM, dtype=dtype)
    order = torch.randperm(batch * pages)
    inv_freq, rows = frequencies(DIM), torch.arange(cached)
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
    group = HEADS // KV_HEADS

    def check() -> tuple[float, float]:
        # The first stream and the last kv head say it for all, and fp64 stays affordable.
        got, _ = ops.paged_attention(*args, inv_freq=inv_freq)
        one = torch.tensor([0, 1], dtype=torch.int32)
        want, _ = spec.reference(
            q[:1, -group:].double(), k_pages[:, -1:], v_pages[:, -1:], args[3][:pages], one * pages,
            one, args[6][:1], None, inv_freq, DIM**-0.5, 0.0, None,
        )  # fmt: skip
        return rms_error(got[:1, -group:], want), spec.tolerance(dtype, axes, bound)

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


def prefill(length: int, window: int, dtype: torch.dtype, flex: bool) -> Case:
    """Causal prefill under a window with 4 sinks."""
    q = torch.randn(1, HEADS, length, DIM).to(dtype)
    k = torch.randn(1, KV_HEADS, length, DIM).to(dtype)
    v = torch.randn(1, KV_HEADS, length, DIM).to(dtype)
    bound, axes = bound_call("attention", q, k, v, window=window, sinks=4)
    spec = ops.specs()["attention"]
    last = max(0, length - 300)

    def check() -> tuple[float, float]:
        got = cast(Tensor, ops.attention(q, k, v, window=window, sinks=4))
        want, _ = spec.reference(
            q[:, :4, last:].double(), k[:, :1].double(), v[:, :1].double(), window, 4, None, True,
            DIM**-0.5, 0.0,
        )  # fmt: skip
        return rms_error(got[:, :4, last:], want), spec.tolerance(dtype, axes, bound)

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
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Tensor, h: Tensor, t: Tensor, j: Tensor) -> Tensor:
        return (j <= t) & ((t - j < window) | (j < 4))

    length = q.shape[2]
    mask = create_block_mask(seen, None, None, length, length, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)


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


def append(tokens: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Writing a chunk into pages, keys rotated on the way. The peer rotates and copies in torch."""
    pages = -(-tokens // PAGE) + 1
    k = torch.randn(tokens, KV_HEADS, DIM).to(dtype)
    v = torch.randn(tokens, KV_HEADS, DIM).to(dtype)
    k_pages = torch.zeros(pages, KV_HEADS, DIM, PAGE, dtype=dtype)
    v_pages = torch.zeros(pages, KV_HEADS, PAGE, DIM, dtype=dtype)
    rows, inv_freq = torch.arange(tokens), frequencies(DIM)
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
        a, b = k[..., : DIM // 2], k[..., DIM // 2 :]
        k_dense.copy_(torch.cat([a * cos - b * sin, b * cos + a * sin], -1))
        v_dense.copy_(v)

    return Case(
        "append", f"{dtype_name(dtype)} {tokens} tokens",
        lambda: ops.append(*args, inv_freq=inv_freq), check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch rotate + copy",
    )  # fmt: skip


def merge_states(tokens: int, dtype: torch.dtype = torch.float32) -> Case:
    """Two partial attentions into one."""
    o_a, o_b = (torch.randn(tokens, HEADS, DIM).to(dtype) for _ in range(2))
    lse_a, lse_b = torch.randn(tokens, HEADS), torch.randn(tokens, HEADS)
    args = (o_a, lse_a, o_b, lse_b)
    bound, axes = bound_call("merge_states", *args)
    spec = ops.specs()["merge_states"]

    def check() -> tuple[float, float]:
        want, _ = spec.reference(o_a.double(), lse_a.double(), o_b.double(), lse_b.double())
        return rms_error(ops.merge_states(*args)[0], want), spec.tolerance(dtype, axes, bound)

    return Case(
        "merge_states", f"{dtype_name(dtype)} {tokens} tokens, {HEADS} heads",
        lambda: ops.merge_states(*args), check, spec.bytes(axes, bound), spec.flops(axes, bound),
        lambda: spec.reference(*args), "torch, eager",
    )  # fmt: skip


def causal_conv(tokens: int, channels: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A chunk of `tokens` of one stream, four taps, SiLU; the peer joins, convolves and keeps."""
    x, weight = torch.randn(tokens, channels).to(dtype), torch.randn(channels, 4)
    state = torch.randn(1, channels, 3).to(dtype)
    indptr, rows = torch.tensor([0, tokens]).int(), torch.zeros(1).int()
    bound, axes = bound_call("causal_conv", x, weight, None, state, indptr, rows)
    spec, narrow = ops.specs()["causal_conv"], weight.to(dtype)[:, None]

    def ours() -> torch.Tensor:
        return ops.causal_conv(x, weight, None, state, indptr, rows)

    def peer() -> torch.Tensor:
        seen = torch.cat([state, x.T[None]], -1)
        state.copy_(seen[..., -3:])
        return F.silu(F.conv1d(seen, narrow, groups=channels))[0].T

    def check() -> tuple[float, float]:
        before = state.double()
        want = spec.reference(x.double(), weight.double(), None, before, indptr, rows, True)
        return rms_error(ours(), want), spec.tolerance(dtype, axes, bound)

    return Case(
        "causal_conv", f"{dtype_name(dtype)} [{tokens}, {channels}]", ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch conv1d",
    )  # fmt: skip


def linear_attention(tokens: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A chunk of one stream, 8 heads of 128, ReLU; the peer is the masked product of the chunk."""
    q, k, v = (torch.randn(tokens, 8, 128).to(dtype) for _ in range(3))
    state, norm = torch.zeros(1, 8, 128, 128), torch.ones(1, 8, 128)
    indptr, rows = torch.tensor([0, tokens]).int(), torch.zeros(1).int()
    args = (q, k, v, state, norm, indptr, rows)
    bound, axes = bound_call("linear_attention", *args)
    spec = ops.specs()["linear_attention"]

    def ours() -> torch.Tensor:
        return ops.linear_attention(*args)

    def peer() -> torch.Tensor:
        a, b, c = (x.float().transpose(0, 1) for x in (q.relu(), k.relu(), v))
        weights = (a @ b.mT).tril_()
        top = weights @ c + a @ state[0]
        under = weights.sum(-1) + (a @ norm[0, :, :, None])[..., 0] + 1e-6
        state[0] += b.mT @ c
        norm[0] += b.sum(1)
        return (top / under[..., None]).transpose(0, 1).to(dtype)

    def check() -> tuple[float, float]:
        wide = {n: x.double() if n in ("q", "k", "v", "state", "norm") else x
                for n, x in bound.items()}  # fmt: skip
        want = spec.reference(**wide)
        return rms_error(ours(), want), spec.tolerance(dtype, axes, bound)

    return Case(
        "linear_attention", f"{dtype_name(dtype)} {tokens} tokens", ours, check,
        spec.bytes(axes, bound), spec.flops(axes, bound), peer, "torch expression",
    )  # fmt: skip


def cases(op: str | None, quick: bool) -> Iterator[Case]:
    """Cases of one op or of all, made one at a time: some hold gigabytes."""
    from . import adapters, sparse  # their cases are made of what is above

    bf16, f32 = torch.bfloat16, torch.float32
    decodes = [(1, 4096), (8, 4096)]
    prefills = [(bf16, 2048, 512)]
    linears = [(1, 2048, 2048), (256, 256, 1024)]
    chunks = [256]
    mixes = [(64, 64, 1024), (256, 4, 1024)]
    masks, blocks = [(bf16, 2048)], [(bf16, 2048, True)]
    if not quick:
        decodes = [(b, c) for c in (1024, 4096, 16384, 65536) for b in (1, 2, 8)]
        prefills = [(d, n, w) for d in (bf16, f32) for n in (4096, 16384) for w in (512, 2048)]
        linears = [(1, 256, 1024), (256, 256, 1024), (1, 4096, 4096), (64, 4096, 4096)]
        chunks = [1, 256, 4096]
        mixes = [(64, 64, 4096), (512, 8, 4096), (1, 1, 4096), (8, 8, 4096), (64, 1, 4096)]
        masks = [(d, n) for d in (bf16, f32) for n in (4096, 32768)]
        blocks = [(d, n, c) for d in (bf16, f32) for n in (4096, 8192) for c in (False, True)]
    makers: dict[str, list[Callable[[], Case]]] = {
        "linear_attention": [
            partial(linear_attention, t) for t in ((256,) if quick else (1, 256, 4096))
        ],
        "causal_conv": [
            partial(causal_conv, t, 4096) for t in ((256,) if quick else (1, 256, 4096))
        ],
        "paged_attention": [partial(decode, *shape) for shape in decodes],
        "attention": [
            *(partial(prefill, n, w, d, flex=not quick) for d, n, w in prefills),
            *(partial(sparse.sparse, n, c, d, flex=not quick) for d, n, c in blocks),
        ],
        "pooled_block_mask": [partial(sparse.pooled_block_mask, n, d) for d, n in masks],
        "linear": [partial(linear, *shape) for shape in linears],
        "append": [partial(append, tokens) for tokens in chunks],
        "merge_states": [partial(merge_states, tokens) for tokens in chunks],
        "lora": [partial(adapters.stack, *mix) for mix in mixes],
        "lora_rows": [
            *(partial(adapters.rows, *mix) for mix in mixes),
            *(partial(adapters.rows, *mixes[0], bits=bits) for bits in (8, 4)),
        ],
    }
    for name, make in makers.items():
        if op in (None, name):
            for one in make:
                yield one()


def dtype_name(dtype: torch.dtype) -> str:
    """As in the names of shapes."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def short(n: int) -> str:
    """A length, in k where it is whole."""
    return f"{n // 1024}k" if n % 1024 == 0 else str(n)
