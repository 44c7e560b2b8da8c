# SPDX-License-Identifier: Apache-2.0
"""Arguments on which `headrace check` holds every op against its reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..adapters import quantize_rows
from .proof_scores import score_cases
from .proof_survivors import survivor_cases

UNLIMITED = 2**62
FAR = 4_000_000  # a position


def _attention(seed: int, dtype: torch.dtype, dim: int, **options: Any) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 4, 67, dim, generator=g).to(dtype)
    k, v = (torch.randn(1, 2, 131, dim, generator=g).to(dtype) for _ in range(2))
    return {"q": q, "k": k, "v": v, **options}


def paged(
    seed: int, base: int = 0, dtype: torch.dtype = torch.float32, dim: int = 64, size: int = 16
) -> dict[str, Any]:
    """Two streams, 4 sinks and a window of 50, 5 queries at the end of 90 tokens each."""
    g = torch.Generator().manual_seed(seed)
    entries, owners = [], [0]
    pages = itertools.count()
    for _ in range(2):
        entries.append([next(pages), 0, 4, base, 53, base, UNLIMITED])
        for at in range(32, 90, size):
            entries.append(
                [next(pages), 0, min(size, 90 - at), base + at, UNLIMITED, base + at, 50]
            )
        owners.append(len(entries))
    total = next(pages)
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return {
        "q": torch.randn(10, 4, dim, generator=g).to(dtype),
        "k_pages": torch.randn(total, 2, dim, size, generator=g).to(dtype),
        "v_pages": torch.randn(total, 2, size, dim, generator=g).to(dtype),
        "entries": torch.tensor(entries),
        "entry_indptr": torch.tensor(owners, dtype=torch.int32),
        "q_indptr": torch.tensor([0, 5, 10], dtype=torch.int32),
        "q_pos": torch.arange(base + 85, base + 90).repeat(2),
        "inv_freq": frequencies,
    }


def _some_blocks() -> Tensor:
    return torch.rand(1, 4, 5, 9, generator=torch.Generator().manual_seed(6)) < 0.4


def _attention_cases() -> list[dict[str, Any]]:
    return [
        _attention(1, torch.float32, 64),
        _attention(2, torch.float32, 80, window=33, sinks=4),
        _attention(3, torch.float32, 32, window=33, sink_logits=torch.zeros(4), softcap=20.0),
        _attention(4, torch.bfloat16, 128, window=40, sinks=2),
        _attention(5, torch.float16, 256, causal=False),
        _attention(6, torch.float32, 64, block_mask=_some_blocks(), block_size=16, sinks=2),
    ]


def _paged_cases() -> list[dict[str, Any]]:
    return [
        paged(1),
        paged(2, base=FAR),
        paged(3, dtype=torch.bfloat16, dim=128),
        paged(4, dtype=torch.float16, dim=96, size=32) | {"sink_logits": torch.ones(4)},
        paged(5) | {"split": 16},
        _codes(paged(6), torch.int8),
        _codes(paged(7), torch.float8_e4m3fn),
        _three_axes(paged(8)),
    ]


def _codes(view: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The view with quantised pages, a scale for every slot."""
    largest = 127.0 if dtype == torch.int8 else 448.0
    for name, scale, axis in (("k_pages", "k_scale", 2), ("v_pages", "v_scale", 3)):
        pages = view[name]
        view[scale] = pages.abs().amax(axis) / largest
        codes = pages / view[scale].unsqueeze(axis)
        view[name] = (codes.round() if dtype == torch.int8 else codes).to(dtype)
    return view


def _three_axes(view: dict[str, Any]) -> dict[str, Any]:
    """The view with positions of time, height and width, and a gain."""
    pos, entries = view["q_pos"], view["entries"]
    near = torch.arange(len(entries))[:, None] * torch.tensor([1, 0, -1, 0])
    near[:, 1::2] = UNLIMITED
    near[0, 1::2] = 2
    view["q_pos"] = torch.stack([pos, pos % 7, pos % 5], 1)
    view["entries"] = torch.cat([entries, near], 1)
    axis = (torch.arange(len(view["inv_freq"])) % 3).int()
    return view | {"q_order": pos, "freq_axis": axis, "rope_gain": 1.2}


def _append_cases() -> list[dict[str, Any]]:
    made = []
    for seed, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        view = paged(seed, dtype=dtype)
        g = torch.Generator().manual_seed(seed)
        slots = torch.randperm(16, generator=g)[:9]
        where = torch.stack([slots % 3, slots, slots * 7], 1)
        k, v = (torch.randn(9, 2, 64, generator=g).to(dtype) for _ in range(2))
        kept = {name: view[name] for name in ("k_pages", "v_pages", "inv_freq")}
        made.append({"k": k, "v": v, "where": where, **kept})
    return made


def _append_absorb_cases() -> list[dict[str, Any]]:
    """The slots of `_append_cases` hold tokens, all but the first of which are absorbed."""
    made = []
    for seed, (case, raw) in enumerate(zip(_append_cases(), (False, True, False), strict=True)):
        g = torch.Generator().manual_seed(20 + seed)
        offsets = torch.randint(0, 90, (9, 2), generator=g)
        evicted = torch.cat([torch.arange(9).clamp(max=1)[:, None], offsets], 1)
        made.append(
            case
            | {
                "evicted": evicted,
                "state": torch.randn(3, 2, 64, 64, generator=g),
                "norm": torch.rand(3, 2, 64, generator=g),
                "indptr": torch.tensor([0, 4, 9], dtype=torch.int32),
                "rows": torch.tensor([2, 0], dtype=torch.int32),
                "raw": raw,
            }
        )
    return made


def _merge_cases() -> list[dict[str, Any]]:
    made = []
    for seed, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        g = torch.Generator().manual_seed(seed)
        o_a, o_b = (torch.randn(13, 4, 64, generator=g).to(dtype) for _ in range(2))
        lse_a, lse_b = (torch.randn(13, 4, generator=g) * 4 for _ in range(2))
        lse_a[0] = -torch.inf
        made.append({"o_a": o_a, "lse_a": lse_a, "o_b": o_b, "lse_b": lse_b})
    return made


def _linear_cases() -> list[dict[str, Any]]:
    made = []
    for seed, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        g = torch.Generator().manual_seed(seed)
        x, weight = torch.randn(33, 200, generator=g), torch.randn(129, 200, generator=g)
        bias = torch.randn(129, generator=g)
        made.append({"x": x.to(dtype), "weight": weight.to(dtype), "bias": bias.to(dtype)})
    return made


def _mask_cases() -> list[dict[str, Any]]:
    """Whole numbers, so that no score is rounded: of equal ones the first are kept."""
    made = []
    for seed, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        g = torch.Generator().manual_seed(seed)
        q, k = (torch.randint(-1, 2, (1, h, n, 32), generator=g) for h, n in ((4, 64), (2, 256)))
        made.append({"q": q.to(dtype), "k": k.to(dtype), "block_size": 16, "blocks": 5, "sinks": 3})
    return made


def _hstu_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(9)
    q, k = (torch.randn(75, 2, 32, generator=g) for _ in "qk")
    v = torch.randn(75, 2, 48, generator=g)
    plain = {
        "q": q,
        "k": k,
        "v": v,
        "k_indptr": torch.tensor([0, 40, 75], dtype=torch.int32),
        "max_seq_len": 64,
        "alpha": 32**-0.5,
    }
    targets = torch.tensor([5, 0], dtype=torch.int32)
    return [
        plain,
        plain | {"num_targets": targets, "max_attn_len": 9, "contextual_seq_len": 3},
        {n: x.bfloat16() if n in "qkv" else x for n, x in plain.items()},
    ]


def _conv_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(10)
    case: dict[str, Any] = {
        "x": torch.randn(14, 67, generator=g),
        "weight": torch.randn(67, 4, generator=g),
        "state": torch.randn(3, 67, 3, generator=g),
        "indptr": torch.tensor([0, 3, 14], dtype=torch.int32),
        "rows": torch.tensor([2, 0], dtype=torch.int32),
    }
    half = {n: case[n].bfloat16() for n in ("x", "state")}
    return [case, case | {"silu": False}, case | half]


def _linear_attention_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(11)
    q = torch.randn(50, 4, 32, generator=g)
    k, v = (torch.randn(50, 2, 32, generator=g) for _ in "kv")
    case: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "state": torch.rand(3, 2, 32, 32, generator=g),
        "norm": torch.rand(3, 2, 32, generator=g),
        "indptr": torch.tensor([0, 9, 50], dtype=torch.int32),
        "rows": torch.tensor([1, 2], dtype=torch.int32),
    }
    decay = torch.log(torch.tensor([0.9, 0.99]))
    return [case, case | {"norm": None, "log_decay": decay}]


def _delta_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(12)
    case: dict[str, Any] = {
        "q": torch.randn(40, 2, 32, generator=g),
        "k": torch.randn(40, 2, 32, generator=g),
        "v": torch.randn(40, 4, 48, generator=g),
        "log_decay": -torch.rand(40, 4, generator=g),
        "beta": torch.rand(40, 4, generator=g),
        "state": torch.randn(3, 4, 32, 48, generator=g),
        "indptr": torch.tensor([0, 7, 40], dtype=torch.int32),
        "rows": torch.tensor([2, 0], dtype=torch.int32),
    }
    return [case, case | {n: case[n].bfloat16() for n in "qkv"}]


def _frame_delta_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(13)
    q, k = (torch.rand(50, 2, 32, generator=g) * by for by in (1.0, 0.03))
    case: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": torch.randn(50, 4, 32, generator=g),
        "beta": torch.rand(50, 4, generator=g),
        "state": torch.rand(3, 4, 32, 32, generator=g),
        "norm": torch.rand(3, 4, 32, generator=g) + 0.5,
        "frames": torch.tensor([0, 20, 40, 50], dtype=torch.int32),
        "indptr": torch.tensor([0, 2, 3], dtype=torch.int32),
        "rows": torch.tensor([1, 2], dtype=torch.int32),
    }
    decay = -torch.rand(3, 4, generator=g)
    return [case, case | {"log_decay": decay, "q_hat": q.flip(-1), "k_hat": k.flip(-1)}]


def _lora_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(7)
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        x, y = torch.randn(33, 150, generator=g), torch.randn(33, 70, generator=g)
        a, b = torch.randn(5, 9, 150, generator=g) / 12, torch.randn(5, 70, 9, generator=g)
        slots = torch.randint(-1, 5, (33,), generator=g, dtype=torch.int32)
        tensors = {"x": x, "a": a, "b": b, "y": y}
        cases.append(
            {n: t.to(dtype) for n, t in tensors.items()}
            | {"slots": slots, "scale": torch.rand(5, generator=g)}
        )
    return cases


def _lora_rows_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(8)
    x, y = torch.randn(20, 64, generator=g), torch.randn(20, 96, generator=g)
    a, b = torch.randn(30, 2, 64, generator=g) / 8, torch.randn(30, 96, generator=g)
    plain = {
        "x": x,
        "y": y,
        "rows": torch.randperm(30, generator=g).int(),
        "row_indptr": torch.tensor([0, 3, 20, 30], dtype=torch.int32),
        "slots": torch.randint(-1, 3, (20, 2), generator=g, dtype=torch.int32),
        "scale": torch.rand(3, generator=g),
        "slice_ends": torch.tensor([64, 96], dtype=torch.int32),
    }
    cases = [plain | {"a": a, "b": b}]
    for bits in (8, 4):
        (a_codes, a_scale), (b_codes, b_scale) = (quantize_rows(w, bits, 32) for w in (a, b))
        codes = {"a": a_codes, "b": b_codes, "a_scale": a_scale, "b_scale": b_scale}
        cases.append(plain | codes)
    return cases


CASES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "attention": _attention_cases,
    "paged_attention": _paged_cases,
    "append": _append_cases,
    "append_absorb": _append_absorb_cases,
    "merge_states": _merge_cases,
    "linear": _linear_cases,
    **score_cases(),
    **survivor_cases(),
    "pooled_block_mask": _mask_cases,
    "causal_conv": _conv_cases,
    "gated_delta_rule": _delta_cases,
    "hstu_attention": _hstu_cases,
    "frame_delta_rule": _frame_delta_cases,
    "linear_attention": _linear_attention_cases,
    "lora": _lora_cases,
    "lora_rows": _lora_rows_cases,
}
