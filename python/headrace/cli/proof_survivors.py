# SPDX-License-Identifier: Apache-2.0
"""Arguments on which `headrace check` holds the ops that compare, compact and scatter rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def survivor_cases() -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """The cases of every op, by name."""
    return {
        "similarity": _similarity_cases,
        "compact": _compact_cases,
        "compact_inplace": _inplace_cases,
        "scatter_back": _scatter_cases,
    }


def _similarity_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(12)
    x = torch.randn(2, 6, 9, 130, generator=g)
    ref = x + 0.5 * torch.randn(x.shape, generator=g)
    old, new = torch.randint(0, 256, (2, 2, 45, 67, 3), generator=g).byte()
    index = torch.randint(-1, 5, (2, 6, 9), generator=g).int()
    return [
        {"x": x, "ref": ref},
        {"x": x.bfloat16(), "ref": ref.bfloat16(), "metric": "l2", "radius": 1},
        {"x": x.half(), "ref": ref[:1, :1, :5], "metric": "gauss", "index": index, "alpha": 65.0},
        {"x": old, "ref": new, "metric": "l1", "patch_height": 14, "patch_width": 14},
        {"x": old, "ref": new.float(), "patch_height": 0, "patch_width": 0},
    ]


def _kept(seed: int, size: int) -> dict[str, torch.Tensor]:
    """Ascending indices of two batch entries and three heads, as many as the counts say."""
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(2, 3, size, generator=g).argsort(-1)[..., : size // 3].sort(-1).values
    count = torch.tensor([[size // 3, 5, 0], [1, 2, 7]], dtype=torch.int32)
    return {"index": order.int().contiguous(), "count": count}


def _compact_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(13)
    x, mask = torch.randn(2, 3, 90, 70, generator=g), torch.rand(2, 1, 90, generator=g) < 0.4
    merged = {"target": torch.randint(-1, 90, (2, 3, 90), generator=g).int()}
    return [
        {"x": x, **_kept(13, 90)},
        {"x": x.bfloat16(), "mask": mask, "capacity": 30},
        {"x": x, "mask": mask, **merged},
        {"x": x.half(), **_kept(14, 90), **merged,
         "weights": torch.rand(2, 1, 90, generator=g)},
    ]  # fmt: skip


def _inplace_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(14)
    x = torch.randn(2, 3, 60, 70, generator=g)
    return [{"x": x, **_kept(15, 60)}, {"x": x.half(), "index": _kept(16, 60)["index"][:1, :1]}]


def _scatter_cases() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(15)
    y, x = torch.randn(2, 3, 60, 70, generator=g), torch.randn(2, 3, 20, 70, generator=g)
    return [{"y": y, "x": x, **_kept(17, 60)}]
