# SPDX-License-Identifier: Apache-2.0
"""What one row of the table times, and when a result counts as right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

PEER = 2e-2  # how far a peer may be, which may round where ours does not
Make = Callable[[], dict[str, Any]]
Run = Callable[[], float]
Step = Callable[[dict[str, Any]], Any]
Told = bool | Iterable[tuple[Any, ...]]
"""What a check says: right or wrong, or pairs of a result and what it should be, of which integers
have to be equal; a third number is the least scale that an error is relative to."""
Check = Callable[[dict[str, Any], Any], Told]


def near(got: torch.Tensor, want: torch.Tensor, allowed: float, least: float = 0.0) -> bool:
    """RMS error relative to the RMS of `want`, or to `least`; NaN is never near."""
    if not got.is_floating_point():
        return torch.equal(got, want.to(got.dtype))
    got, want = got.double(), want.double()
    scale = want.square().mean().sqrt().clamp(min=least)
    return bool((got - want).square().mean().sqrt() <= allowed * scale)


@dataclass
class Work:
    """What one row of the table times. ours: by backend. bytes and flops are the least that it
    takes; tolerance: of a result's dtype. proofs: what a peer's result has to be, of those that
    compute the same. graph: False for what the host drives, which is timed by the clock."""

    op: str
    what: str
    make: Make
    ours: Mapping[str, Step]
    peers: Mapping[str, Step]
    check: Check
    bytes: float
    flops: float
    tolerance: Callable[[torch.dtype], float]
    proofs: Mapping[str, Check] = field(default_factory=dict)
    floor_s: float | None = None
    graph: bool = True
