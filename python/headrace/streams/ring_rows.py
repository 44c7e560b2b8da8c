# SPDX-License-Identifier: Apache-2.0
"""The rows of a ring's model call: which frame each is of, what it sees, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .ring_flying import Flying, doubled
from .ring_kept import Row

if TYPE_CHECKING:
    from .ring import Ring

Rows = list[tuple[Flying, str, Row]]
"""Frame, branch, and what the row reads and writes."""


def of_tick(ring: Ring, flying: Sequence[Flying]) -> Rows:
    """What runs in this tick."""
    rows: Rows = []
    for branch in ring._branches:
        for f in ring._unwritten:
            row = Row(f.at, ("clean", branch), writes=True, sees=f.sees)
            rows.append((f, branch, row))
        for f in flying:
            if branch == "negative" and not doubled(ring.guidance, f.step):
                continue
            cache: tuple[object, ...] | None = None
            if ring._cache == "step":
                cache = ("step", branch, f.step)
            elif ring._cache == "clean":
                cache = ("clean", branch)
            group = branch if ring.together else None
            row = Row(f.at, cache, ring._cache == "step", group, f.sees)
            rows.append((f, branch, row))
    return rows


def stepped(
    ring: Ring, flying: Sequence[Flying], rows: Rows, attend: Callable[..., Tensor]
) -> list[Flying]:
    """The frames in flight one step on, by one model call."""
    said = _run(ring, rows, attend)

    def one(f: Flying) -> Flying:
        def knob(name: str) -> Any:
            return ring.knobs.of_tick(f.knobs, name)

        with_it, without = said[f.number, "condition"], said.get((f.number, "negative"))
        return f.stepped(with_it, without, ring.guidance, ring.solver, knob)

    return [one(f) for f in flying]


def _run(ring: Ring, rows: Rows, attend: Callable[..., Tensor]) -> dict[tuple[int, str], Tensor]:
    """Predictions [P, C] by the number of the frame and the branch."""
    (tokens, _), k = ring.shape, ring.denoiser.config.condition
    told = [ring.knobs.of_tick(f.knobs, branch).expand(tokens, k) for f, branch, _ in rows]
    out = ring.denoiser(
        torch.cat([f.x for f, _, _ in rows]),
        torch.cat([f.level(clean=f.done) for f, _, _ in rows]),
        torch.arange(tokens, device=ring.device).repeat(len(rows)),
        torch.cat(told) if k else None,
        attend,
        linear=ops.linear if ring.exact else F.linear,
    )
    parts = zip(rows, out.float().split(tokens), strict=True)
    return {(f.number, branch): y for (f, branch, _), y in parts}
