# SPDX-License-Identifier: Apache-2.0
"""Arguments on which `headrace check` holds the ops that score and select."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def score_cases() -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """The cases of every op, by name."""
    return {
        "select": _select_cases,
        "block_score": _block_score_cases,
        "segment_reduce": _segment_cases,
        "attention_mass": _mass_cases,
        "assign": _assign_cases,
    }


def _select_cases() -> list[dict[str, Any]]:
    """Few different scores, so that ties count; a fifth of them none."""
    g = torch.Generator().manual_seed(10)
    score = (2 * torch.randn(2, 3, 500, generator=g)).round()
    score[torch.rand(score.shape, generator=g) < 0.2] = torch.nan
    whole = {"score": score, "lengths": torch.tensor([[500], [371]], dtype=torch.int32)}
    buckets = (torch.arange(500, dtype=torch.int32) // 20).view(1, 1, 500)
    return [
        whole | {"k": 60, "first": 4, "last": 16},
        whole | {"policy": "threshold", "threshold": 1.0, "lowest": True},
        whole | {"policy": "share", "share": 0.3, "floor": 3, "capacity": 100},
        whole | {"policy": "mass", "mass": 0.9},
        whole | {"policy": "otsu"},
        whole | {"policy": "quota", "buckets": buckets, "quota": 3, "floor": 10},
        whole | {"policy": "flat", "k": 200, "floor": 20},
    ]


def _block_score_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(11)
    q, keys = torch.randn(2, 4, 3, 64, generator=g), torch.randn(2, 2, 131, 64, generator=g)
    words = torch.randint(-(2**31), 2**31, (2, 2, 131, 2), generator=g).int()
    index = torch.randint(-1, 131, (2, 70), generator=g).int()
    return [
        {"q": q, "keys": keys},
        {"q": q.bfloat16(), "keys": keys.half(), "heads": "each", "queries": "max"},
        {"q": q, "keys": keys, "upper": keys + 1, "heads": "group", "index": index},
        {"q": q, "keys": keys, "block_size": 16, "queries": "sum", "scale": 0.125},
        {"q": words[:, :, :5].repeat(1, 2, 1, 1), "keys": words, "heads": "group_max"},
    ]


def _segment_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(12)
    x, ids = torch.randn(200, 2, 48, generator=g), torch.randint(-1, 10, (200,), generator=g).int()
    state = torch.randn(9, 2, 48, generator=g)
    sums = {"total": state, "unit": state, "count": torch.zeros(9, dtype=torch.int32)}
    return [
        {"x": x, "ids": ids, "low": state, "high": state} | sums,
        {"x": x.bfloat16(), "ids": ids, "low": state.bfloat16()} | sums,
    ]


def _mass_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(13)
    q, k = torch.randn(2, 4, 20, 64, generator=g), torch.randn(2, 2, 131, 64, generator=g)
    lengths = torch.tensor([131, 90], dtype=torch.int32)
    return [
        {"q": q, "k": k, "lengths": lengths},
        {"q": q, "k": k, "exclude": 20, "pool": 5, "lengths": lengths},
        {"q": q.bfloat16(), "k": k.bfloat16(), "reduce": "max", "pool": 7, "pooling": "max"},
        {"q": q, "k": k, "past": torch.rand(2, 2, 100, generator=g), "decay": 0.9, "reduce": "sum",
         "lse": torch.full((2, 4, 20), 5.0), "causal": False},
    ]  # fmt: skip


def _assign_cases() -> list[dict[str, Any]]:
    """Whole numbers, so that sums are exact and ties are ties."""
    g = torch.Generator().manual_seed(14)
    x, c = (torch.randint(-2, 3, (2, n, 32), generator=g).float() for n in (90, 70))
    bits = torch.randint(-(2**31), 2**31, (2, 90, 2), generator=g).int()
    return [
        {"x": x, "c": c, "metric": "dot", "lengths": torch.tensor([70, 33]).int()},
        {"x": x.half(), "c": c[:1].half(), "metric": "l2", "threshold": -100.0},
        {"x": bits, "metric": "hamming", "causal": True},
        {"x": x.bfloat16(), "metric": "dot", "bipartite": True},
    ]
