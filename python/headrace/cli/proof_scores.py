# SPDX-License-Identifier: Apache-2.0
"""Arguments on which `headrace check` holds the ops that score and select."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def score_cases() -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """The cases of every op, by name."""
    return {"select": _select_cases, "block_score": _block_score_cases}


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
