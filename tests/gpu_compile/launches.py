# SPDX-License-Identifier: Apache-2.0
"""Calls that reach every Triton kernel, in every dtype and in all its forms."""

from __future__ import annotations

import functools

import torch

import headrace

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def attention(dtype, dim, **more):
    q = torch.zeros(2, 4, more.pop("q_len", 130), dim, dtype=dtype)
    k = torch.zeros(2, 2, 4096, dim, dtype=dtype)
    if blocks := more.pop("blocks", None):
        more["block_mask"] = torch.ones(2, blocks, -(-q.shape[2] // 64), 64, dtype=torch.bool)
    torch.ops.headrace.attention(q, k, k, **more)


def paged(dtype, dim, page=64, **more):
    q = torch.zeros(3, 8, dim, dtype=dtype)
    pages = torch.zeros(64, 2, dim, page, dtype=more.pop("kv", dtype))
    indptr = torch.tensor([0, 1, 3], dtype=torch.int32)
    torch.ops.headrace.paged_attention(
        q,
        pages,
        pages.mT.contiguous(),
        torch.zeros(64, 7, dtype=torch.int64),
        indptr,
        indptr,
        torch.zeros(3, dtype=torch.int64),
        **more,
    )


def forms(q_dtype, dim, codes, lists, axes, slots=64):
    """Codes, `lists` lists a stream (2 kv heads, on pages of their own), and 1 or 3 axes."""
    heads = 1 if lists > 1 else 2
    pages = torch.zeros(64, heads, dim, 64, dtype=torch.uint8).view(codes)
    scale = torch.zeros(64, heads, slots)
    rotary = {"inv_freq": freqs(dim)}
    if axes == 3:
        rotary |= {"freq_axis": torch.zeros(dim // 2, dtype=torch.int32), "rope_gain": 1.2}
    q_pos = torch.zeros((3, 3) if axes == 3 else 3, dtype=torch.int64)
    torch.ops.headrace.paged_attention(
        torch.zeros(3, 8, dim, dtype=q_dtype),
        pages,
        pages.mT.contiguous(),
        torch.zeros(64, 5 + 2 * axes, dtype=torch.int64),
        torch.zeros(2 * lists + 1, dtype=torch.int32),
        torch.tensor([0, 1, 3], dtype=torch.int32),
        q_pos,
        q_order=torch.zeros(3, dtype=torch.int64),
        k_scale=scale,
        v_scale=scale,
        **rotary,
    )


def append_forms(dtype, dim, codes, axes, slots=64):
    k = torch.zeros(33, 2, dim, dtype=dtype)
    pages, scale = (
        torch.zeros(9, 2, dim, 64, dtype=torch.uint8).view(codes),
        torch.zeros(9, 2, slots),
    )
    rotary = {"inv_freq": freqs(dim)}
    if axes == 3:
        rotary |= {"freq_axis": torch.zeros(dim // 2, dtype=torch.int32)}
    where = torch.zeros(33, 2 + axes, dtype=torch.int64)
    torch.ops.headrace.append(
        k, k, pages, pages.mT.contiguous(), where, k_scale=scale, v_scale=scale, **rotary
    )


def append(dtype, dim, **more):
    k, pages = torch.zeros(33, 2, dim, dtype=dtype), torch.zeros(9, 2, dim, 64, dtype=dtype)
    where = torch.zeros(33, 3, dtype=torch.int64)
    torch.ops.headrace.append(k, k, pages, pages.mT.contiguous(), where, **more)


def append_absorb(dtype, dim=128, codes=None, axes=1, **more):
    k, pages = torch.zeros(33, 2, dim, dtype=dtype), torch.zeros(9, 2, dim, 64, dtype=dtype)
    if codes is not None:
        pages = torch.zeros(9, 2, dim, 64, dtype=torch.uint8).view(codes)
        more |= {n: torch.zeros(9, 2, 64) for n in ("k_scale", "v_scale")}
    where = torch.zeros(33, 2 + axes, dtype=torch.int64)
    evicted = torch.zeros(33, 1 + 2 * axes, dtype=torch.int64)
    if axes == 3:
        more["freq_axis"] = torch.zeros(dim // 2, dtype=torch.int32)
    at = torch.tensor([0, 33]).int(), torch.tensor([1]).int()
    sums = torch.zeros(2, 2, dim, dim), torch.zeros(2, 2, dim)
    torch.ops.headrace.append_absorb(
        k, k, pages, pages.mT.contiguous(), where, evicted, *sums, *at, inv_freq=freqs(dim), **more
    )


def merge_states(dtype, dim):
    o, lse = torch.zeros(5, 4, dim, dtype=dtype), torch.zeros(5, 4)
    torch.ops.headrace.merge_states(o, lse, o, lse)


def linear(dtype, n, bias):
    x, w = torch.zeros(7, 512, dtype=dtype), torch.zeros(n, 512, dtype=dtype)
    torch.ops.headrace.linear(x, w, torch.zeros(n, dtype=dtype) if bias else None)


def lora(dtype, ranks=None):
    x, a, b = (torch.zeros(*n, dtype=dtype) for n in ((7, 512), (3, 16, 512), (3, 256, 16)))
    slots = torch.zeros(7, dtype=torch.int32)
    torch.ops.headrace.lora(x, a, b, slots, torch.ones(3), b.new_zeros(7, 256), ranks=ranks)


def lora_rows(dtype, bits=None, several=2, **more):
    x, y = torch.zeros(7, 512, dtype=dtype), torch.zeros(7, 256, dtype=dtype)
    kind = {None: dtype, 8: torch.int8, 4: torch.uint8}[bits]
    a = torch.zeros(48, 2, 512 // (2 if bits == 4 else 1), dtype=kind)
    b = torch.zeros(48, 256 // (2 if bits == 4 else 1), dtype=kind)
    if bits:
        more |= dict(a_scale=torch.ones(48, 2, 8), b_scale=torch.ones(48, 4))
    rows, slots = torch.arange(48).int(), torch.zeros(7, several, dtype=torch.int32)
    torch.ops.headrace.lora_rows(
        x,
        a,
        b,
        rows,
        torch.tensor([0, 16, 32, 48]).int(),
        slots,
        torch.ones(3),
        y,
        weights=torch.ones(7, several),
        ranks=torch.full((3, 2), 16).int(),
        slice_ends=torch.tensor([128, 256]).int(),
        **more,
    )


def pooled_mask(dtype, dim, **more):
    q, k = torch.zeros(2, 4, 700, dim, dtype=dtype), torch.zeros(2, 2, 2000, dim, dtype=dtype)
    torch.ops.headrace.pooled_block_mask(q, k, **more)


def hstu(dtype, dim, **more):
    x, indptr = torch.zeros(40, 2, dim, dtype=dtype), torch.tensor([0, 40], dtype=torch.int32)
    torch.ops.headrace.hstu_attention(x, x, x, indptr, max_seq_len=64, alpha=0.1, **more)


def gated_delta_rule(dtype, n=90, dim=64):
    q, v = torch.zeros(n, 2, dim, dtype=dtype), torch.zeros(n, 4, dim, dtype=dtype)
    gates, state = torch.zeros(n, 4), torch.zeros(3, 4, dim, dim)
    indptr, rows = torch.tensor([0, 4, n]).int(), torch.tensor([2, 0]).int()
    torch.ops.headrace.gated_delta_rule(q, q, v, gates, gates, state, indptr, rows)


def freqs(dim):
    return torch.ones(dim // 2, dtype=torch.float64)


def causal_conv(t):
    x, state = torch.zeros(5, 70, dtype=t), torch.zeros(2, 70, 3, dtype=t)
    at = torch.tensor([0, 5]).int(), torch.tensor([1]).int()
    headrace.ops.causal_conv(x, torch.zeros(70, 4), torch.zeros(70), state, *at)


def linear_attention(t, dim=64, n=600, **more):
    q, k = torch.zeros(n, 4, dim, dtype=t), torch.zeros(n, 2, dim, dtype=t)
    at = torch.tensor([0, n]).int(), torch.tensor([1]).int()
    state, norm = torch.zeros(2, 2, dim, dim), torch.zeros(2, 2, dim)
    if more.get("raw"):
        more |= {"inv_freq": freqs(dim), "offset": torch.arange(n)}
    headrace.ops.linear_attention(q, k, k, state, norm, *at, **more)


def frame_delta(t, dim=112):
    q, v, beta = torch.zeros(9, 2, dim, dtype=t), torch.zeros(9, 4, dim, dtype=t), torch.zeros(9, 4)
    at = torch.tensor([0, 5, 9]).int(), torch.tensor([0, 2]).int(), torch.tensor([1]).int()
    state, norm = torch.zeros(2, 4, dim, dim), torch.zeros(2, 4, dim)
    hats = {"q_hat": q, "k_hat": q, "log_decay": torch.zeros(2, 4)}
    headrace.ops.frame_delta_rule(q, q, v, beta, state, norm, *at, **hats)


def select(dtype, policy, **more):
    headrace.ops.select(torch.zeros(5, 70000, dtype=dtype), policy, **more)


def block_score(dtype, kind="mean", dim=128, rows=700, **more):
    q, keys = torch.zeros(2, 8, 1, dim, dtype=dtype), torch.zeros(2, 2, rows, dim, dtype=dtype)
    if kind == "bits":
        q, keys = q.int(), keys.int()
    more |= {"upper": keys} if kind == "bounds" else {}
    headrace.ops.block_score(q, keys, **more)


def segment_reduce(dtype, dim=128, **more):
    state, ids = torch.zeros(3, 2, dim), torch.zeros(9, dtype=torch.int32)
    headrace.ops.segment_reduce(torch.zeros(9, 2, dim, dtype=dtype), ids, state, **more)


def attention_mass(dtype, dim=128, **more):
    q, k = torch.zeros(2, 8, 33, dim, dtype=dtype), torch.zeros(2, 2, 700, dim, dtype=dtype)
    headrace.ops.attention_mass(q, k, **more)


def assign(dtype, dim=128, **more):
    kind = torch.int32 if more.get("metric") == "hamming" else dtype
    x, c = torch.zeros(2, 70, dim, dtype=kind), torch.zeros(1, 90, dim, dtype=kind)
    headrace.ops.assign(x, None if "bipartite" in more else c, **more)


def similarity(dtype, metric="cos", wide=False, **more):
    x = torch.zeros(2, 28, 35, 80, dtype=dtype)
    ref = x[:1, :1] if "index" in more else x
    headrace.ops.similarity(x, ref.float() if wide else ref, metric, **more)


def compact(dtype, depth=1152, **more):
    headrace.ops.compact(torch.zeros(2, 3, 65, depth, dtype=dtype), **more)


def moves(dtype, op):
    x, index = torch.zeros(2, 3, 65, 200, dtype=dtype), torch.zeros(2, 3, 9, dtype=torch.int32)
    if op == "compact_inplace":
        headrace.ops.compact_inplace(x, index, index[..., 0])
    else:
        headrace.ops.scatter_back(x, x[:, :, :9], index)
        headrace.ops.scatter_back(x, x + 1, index, aligned=True)


KEPT = torch.zeros(65, dtype=torch.bool)
STATE = torch.zeros(3, 2, 128)
SINK = torch.zeros(4)
# In every dtype and for both architectures.
CASES = {
    "select": lambda t: select(t, "mass", mass=0.5, counts=torch.ones(70000)),
    "block-score": block_score,
    "segment-reduce": lambda t: segment_reduce(
        t, low=STATE.to(t), high=STATE, unit=STATE, count=torch.zeros(3).int()
    ),
    "attention-mass": attention_mass,
    "assign": assign,
    "similarity": similarity,
    "similarity-patches": lambda t: similarity(t, patch_height=2, patch_width=2),
    "compact": lambda t: compact(t, mask=KEPT),
    "merge-rows": lambda t: compact(t, mask=KEPT, target=KEPT.int(), weights=KEPT.float()),
    "compact-inplace": lambda t: moves(t, "compact_inplace"),
    "scatter-back": lambda t: moves(t, "scatter_back"),
    "gated-delta-rule": gated_delta_rule,
    "hstu": lambda t: hstu(t, 128, max_attn_len=512, sinks=3),
    "frame-delta": frame_delta,
    "frame-delta-256": lambda t: frame_delta(t, 256),
    "linear-attention": linear_attention,
    "causal-conv": causal_conv,
    "window": lambda t: attention(t, 128, window=2048, sinks=4),
    "decode": lambda t: attention(t, 128, q_len=1, sink_logits=SINK, softcap=3.0),
    "blocks": lambda t: attention(t, 128, window=2048, sinks=4, blocks=4),
    "paged": lambda t: paged(t, 128, inv_freq=freqs(128)),
    "append": lambda t: append(t, 128, inv_freq=freqs(128)),
    "append-absorb": append_absorb,
    "merge": lambda t: merge_states(t, 128),
    "linear": lambda t: linear(t, 4096, True),
    "lora": lora,
    "lora-rows": lora_rows,
    "pooled-mask": lambda t: pooled_mask(t, 128),
}
# Other paths through the kernels, once each.
PATHS = {
    "both-sides": lambda t: attention(t, 80, window=64, causal=False),
    "wide": lambda t: attention(t, 256, window=64),
    "blocks-shared": lambda t: attention(t, 80, blocks=1, causal=False, softcap=2.0),
    "blocks-decode": lambda t: attention(t, 256, q_len=1, blocks=4, sink_logits=SINK),
    "paged-narrow": lambda t: paged(t, 64, inv_freq=freqs(64)),
    "paged-odd": lambda t: paged(t, 96, page=48, inv_freq=freqs(64), softcap=2.0),
    "paged-wide": lambda t: paged(
        t, 256, page=128, sink_logits=torch.zeros(8), inv_freq=freqs(256)
    ),
    "paged-still": lambda t: paged(t, 128),
    "paged-mixed": lambda t: paged(t, 128, kv=torch.float16, inv_freq=freqs(128)),
    "append-still": lambda t: append(t, 80),
    "pooled-mask-odd": lambda t: pooled_mask(t, 80, window=300, sinks=4, blocks=7),
    "select-top": lambda t: select(t, "top_k", k=64, first=4, last=64),
    "select-threshold": lambda t: select(t, "threshold", lowest=True, threshold=0.5),
    "select-share": lambda t: select(t, "share", share=0.5, forced=torch.zeros(1, 2).int()),
    "select-flat": lambda t: select(t, "flat", k=999, floor=3),
    "similarity-index": lambda t: similarity(t, "gauss", index=torch.zeros(28, 35).int()),
    "similarity-near": lambda t: similarity(t, "l2", wide=True, radius=1),
    "similarity-dot": lambda t: similarity(t, "dot"),
    "pixels": lambda t: similarity(torch.uint8, "l1", patch_height=14, patch_width=14),
    "pixels-whole": lambda t: similarity(torch.uint8, patch_height=0, patch_width=0),
    "compact-listed": lambda t: compact(t, 100, index=torch.zeros(2, 3, 7).int()),
    "score-bounds": lambda t: block_score(t, "bounds", heads="each"),
    "score-bits": lambda t: block_score(t, "bits", dim=1, lengths=torch.ones(2).int()),
    "score-max": lambda t: block_score(t, dim=80, block_size=64, queries="sum"),
    "score-index": lambda t: block_score(t, dim=1024, index=torch.ones(1, 40).int()),
    "segment-wide": lambda t: segment_reduce(t, 3584, unit=torch.zeros(3, 2, 3584)),
    "segment-sums": segment_reduce,
    "mass-known": lambda t: attention_mass(
        t, 80, lse=torch.zeros(2, 8, 33), causal=False, reduce="max", pool=5, exclude=33
    ),
    "assign-squares": lambda t: assign(t, 80, metric="l2", threshold=-1.0),
    "assign-bits": lambda t: assign(t, 2, metric="hamming", causal=True),
    "assign-merge": lambda t: assign(t, 1280, bipartite=True, metric="dot"),
    "hstu-ring": lambda t: hstu(t, 64, k_order=torch.arange(40), causal=False),
    "hstu-wide": lambda t: hstu(t, 256, num_targets=torch.zeros(1, dtype=torch.int32)),
    "paged-int8": lambda t: forms(t, 128, torch.int8, 1, 1),
    "paged-fp8": lambda t: forms(t, 128, torch.float8_e4m3fn, 1, 3, slots=1),
    "paged-lists": lambda t: forms(t, 128, torch.int8, 2, 3),
    "paged-codes-fp32": lambda t: forms(torch.float32, 128, torch.float8_e4m3fn, 2, 1),
    "append-int8": lambda t: append_forms(t, 128, torch.int8, 1),
    "append-fp8": lambda t: append_forms(t, 80, torch.float8_e4m3fn, 3),
    "append-page-scale": lambda t: append_forms(t, 128, torch.int8, 3, slots=1),
    "gated-delta-128": lambda t: gated_delta_rule(t, dim=128),
    "gated-delta-wide": lambda t: gated_delta_rule(t, dim=256),
    "linear-attention-turned": lambda t: linear_attention(t, 128, raw=True),
    "linear-attention-wide": lambda t: linear_attention(t, 256, 40, log_decay=torch.zeros(2)),
    "append-absorb-raw": lambda t: append_absorb(
        t, raw=True, log_decay=torch.zeros(2), count=torch.zeros(2).long()
    ),
    "append-absorb-codes": lambda t: append_absorb(t, 80, torch.float8_e4m3fn, 3),
    "append-absorb-wide": lambda t: append_absorb(t, 256, torch.int8),
    "linear-wide": lambda t: linear(t, 16384, False),
    "lora-ranks": lambda t: lora(t, torch.full((3,), 9).int()),
    "lora-int8": lambda t: lora_rows(t, 8),
    "lora-int4": lambda t: lora_rows(t, 4),
    "lora-dora": lambda t: lora_rows(
        t,
        several=1,
        bias=torch.zeros(2, 256),
        gain=torch.ones(2, 256),
        base_bias=torch.zeros(256),
        epilogue=torch.zeros(3, 2).int(),
    ),
    "lora-gain": lambda t: lora_rows(
        t, several=1, gain=torch.ones(2, 256), epilogue=torch.tensor([[-1, 0]] * 3).int()
    ),
}


def every_case():
    """(case, dtype, call) of all."""
    for name, case in CASES.items():
        for dtype in DTYPES:
            yield name, str(dtype).removeprefix("torch."), functools.partial(case, dtype)
    for name, path in PATHS.items():
        yield name, "bfloat16", functools.partial(path, torch.bfloat16)
