# SPDX-License-Identifier: Apache-2.0
"""Frames alive in a cache, as values: a tick makes new ones, nothing is edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..memory import Plan


class Held(NamedTuple):
    """A frame in one layer: its place in time, its pages, and its mean key and value if asked."""

    at: int
    pages: tuple[int, ...]
    mean: tuple[Tensor, Tensor] | None = None


class Kept(NamedTuple):
    """The frames alive in one layer of a cache, as the newest of them sees them."""

    pinned: tuple[Held, ...] = ()
    window: tuple[Held, ...] = ()

    def then(self, new: Held, plan: Plan, swap: float | None) -> tuple[Kept, tuple[Held, ...]]:
        """With one frame more; and those that are let go.

        swap: once the cache is full, a pinned frame whose mean key and value have a cosine with
        those of the new one below this, on average, gives it its place: the least similar, the
        first among equals. Otherwise the oldest of the window goes.
        """
        if len(self.pinned) < plan.pinned:
            return Kept((*self.pinned, new), self.window), ()
        if swap is not None and len(self.window) == plan.reach and self.pinned:
            likeness = [_likeness(held, new) for held in self.pinned]
            least = min(likeness)
            if least < swap:
                out = likeness.index(least)
                pinned = (*self.pinned[:out], new, *self.pinned[out + 1 :])
                return Kept(pinned, self.window), (self.pinned[out],)
        window = (*self.window, new)
        cut = max(0, len(window) - plan.reach)
        return Kept(self.pinned, window[cut:]), window[:cut]

    def next(self, plan: Plan) -> tuple[Held, ...]:
        """What a frame that is not in the cache sees of it."""
        window = self.window[max(0, len(self.window) - plan.reach + 1) :]
        return self.pinned + (window if plan.reach > 1 else ())

    @property
    def frames(self) -> tuple[Held, ...]:
        """All of them, pinned ones first."""
        return self.pinned + self.window


def _likeness(old: Held, new: Held) -> float:
    assert old.mean is not None
    assert new.mean is not None
    k, v = (F.cosine_similarity(a, b, dim=0) for a, b in zip(old.mean, new.mean, strict=True))
    return float((k + v) / 2)


@dataclass
class Row:
    """A frame of one model call: which cache it reads, and what becomes of its keys.

    cache: a name, None when it reads none. writes: whether it joins that cache. group: rows of the
    same group see one another, None sees itself alone. sees: what a rule recalls for it, instead
    of a cache: frames, and how far before it each stands. pages: [layer], where its keys go.
    """

    at: int
    cache: tuple[object, ...] | None = None
    writes: bool = False
    group: object = None
    sees: Sequence[tuple[int, int]] | None = None
    pages: Sequence[tuple[int, ...]] = ()
